CREATE SCHEMA shop;

CREATE TYPE shop.segment AS ENUM ('consumer', 'business', 'public');

CREATE TABLE shop.customers (
    customer_id       bigint PRIMARY KEY,
    email             text,
    full_name         text NOT NULL,
    segment           shop.segment NOT NULL,
    credit_limit      numeric(12, 2),
    address           jsonb,
    marketing_consent boolean,
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL
);

CREATE TABLE shop.orders (
    order_id    bigint PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES shop.customers,
    status      text NOT NULL,
    currency    char(3) NOT NULL,
    amount      numeric(14, 2) NOT NULL,
    placed_at   timestamptz NOT NULL,
    promised_on date,
    tags        text[],
    note        text,
    updated_at  timestamptz NOT NULL
);

CREATE TABLE shop.order_lines (
    order_id    bigint REFERENCES shop.orders,
    line_number int,
    sku         text NOT NULL,
    quantity    int NOT NULL,
    unit_price  numeric(12, 2) NOT NULL,
    discount    double precision,
    PRIMARY KEY (order_id, line_number)
);

CREATE INDEX ON shop.orders (customer_id);
