CREATE SCHEMA supply;

CREATE TYPE supply.shipment_status AS ENUM ('planned', 'picked', 'shipped', 'delivered', 'lost');

CREATE TABLE supply.warehouses (
    warehouse_id int PRIMARY KEY,
    code         text NOT NULL,
    name         text NOT NULL,
    country      char(2) NOT NULL,
    capacity_m3  double precision,
    opens_at     time,
    active       boolean NOT NULL,
    manual       text,
    updated_at   timestamptz NOT NULL
);

-- Kept out of line as it is: the handbook is large and hardly ever changes with its row.
ALTER TABLE supply.warehouses ALTER COLUMN manual SET STORAGE EXTERNAL;

CREATE TABLE supply.stock (
    warehouse_id  int REFERENCES supply.warehouses,
    sku           text,
    on_hand       int NOT NULL,
    reserved      int NOT NULL,
    reorder_level int,
    counted_at    timestamptz,
    PRIMARY KEY (warehouse_id, sku)
);

CREATE TABLE supply.shipments (
    shipment_id  uuid PRIMARY KEY,
    order_id     bigint NOT NULL,
    warehouse_id int NOT NULL REFERENCES supply.warehouses,
    status       supply.shipment_status NOT NULL,
    carrier      text,
    weight_kg    numeric(9, 3),
    shipped_at   timestamptz,
    delivered_at timestamptz,
    label        bytea,
    events       jsonb NOT NULL
);

CREATE INDEX ON supply.shipments (order_id);
CREATE INDEX ON supply.shipments (status) WHERE status IN ('planned', 'picked', 'shipped', 'lost');
