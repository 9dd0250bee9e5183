CREATE SCHEMA ledger;

CREATE TABLE ledger.accounts (
    account_id bigint PRIMARY KEY,
    iban       text,
    holder     text NOT NULL,
    kind       text NOT NULL,
    currency   char(3) NOT NULL,
    balance    numeric(18, 2) NOT NULL,
    opened_on  date NOT NULL,
    closed_on  date,
    updated_at timestamptz NOT NULL
);

CREATE TABLE ledger.transactions (
    transaction_id bigint PRIMARY KEY,
    account_id     bigint NOT NULL REFERENCES ledger.accounts,
    order_id       bigint,
    booked_at      timestamptz NOT NULL,
    value_date     date NOT NULL,
    amount         numeric(18, 2) NOT NULL,
    kind           text NOT NULL,
    reference      text,
    reversed_by    bigint
);

CREATE INDEX ON ledger.transactions (account_id);
