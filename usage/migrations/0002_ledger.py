"""The ledger's table: partitioned by month, append-only; closed months and prices that were used stay as they are."""

import datetime as dt

from django.db import migrations

from usage.partitions import create_partitions

TABLE = """
CREATE SEQUENCE usage_record_id_seq AS bigint;
CREATE TABLE usage_record (
    id bigint NOT NULL DEFAULT nextval('usage_record_id_seq'),
    request_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('unresolved', 'void', 'exact', 'correction')),
    number smallint NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('unresolved', 'void', 'exact')),
    tenant_id bigint NOT NULL,
    member_id bigint NOT NULL,
    token_id bigint NOT NULL,
    model text NOT NULL,
    size text NOT NULL,
    quality text NOT NULL,
    n integer NOT NULL,
    images integer NOT NULL,
    input_tokens bigint,
    output_tokens bigint,
    reported_tokens bigint,
    charged_tokens bigint NOT NULL,
    provenance text NOT NULL CHECK (provenance IN ('reported', 'derived', 'estimated', 'missing', 'decided')),
    cost numeric(30, 14),
    provider_cost numeric(30, 14),
    price_id bigint,
    price_per_image numeric(18, 8),
    price_per_million_input numeric(18, 8),
    price_per_million_output numeric(18, 8),
    currency text NOT NULL,
    unpriced text NOT NULL CHECK (unpriced IN ('', 'no_price', 'split_unknown')),
    day date NOT NULL,
    booked_day date NOT NULL,
    provider text NOT NULL,
    provider_request_id text NOT NULL,
    latency_ms bigint NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    generation text NOT NULL,
    sequence bigint,
    PRIMARY KEY (request_id, kind, number),
    CHECK ((kind = 'correction') = (number > 0)),
    CHECK (kind IN ('correction', outcome)),
    CHECK ((unpriced <> '') = (cost IS NULL))
) PARTITION BY RANGE (request_id);
ALTER SEQUENCE usage_record_id_seq OWNED BY usage_record.id;

CREATE UNIQUE INDEX usage_record_one_primary ON usage_record (request_id) WHERE kind <> 'correction';
CREATE INDEX usage_record_id ON usage_record (id);
CREATE INDEX usage_record_tenant ON usage_record (tenant_id, id);
CREATE INDEX usage_record_tenant_day ON usage_record (tenant_id, booked_day);
CREATE INDEX usage_record_member ON usage_record (member_id, id);
CREATE INDEX usage_record_token ON usage_record (token_id, id);
CREATE INDEX usage_record_unresolved ON usage_record (tenant_id, id) WHERE kind = 'unresolved';
CREATE INDEX usage_record_unresolved_all ON usage_record (id) WHERE kind = 'unresolved';

CREATE FUNCTION usage_record_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'usage_record is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON usage_record
    FOR EACH ROW EXECUTE FUNCTION usage_record_append_only();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON usage_record
    FOR EACH STATEMENT EXECUTE FUNCTION usage_record_append_only();

CREATE TABLE usage_record_default PARTITION OF usage_record DEFAULT;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON usage_record_default
    FOR EACH STATEMENT EXECUTE FUNCTION usage_record_append_only();
"""

CLOSED = """
CREATE FUNCTION usage_month_closed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE late record;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN  -- else it couldn't see that a month was closed
        RAISE EXCEPTION 'the books are written by READ COMMITTED transactions only: % of % is refused',
            TG_OP, TG_TABLE_NAME USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(1668050803, number::int)  -- usage.closedmonths.LOCK
        FROM (SELECT DISTINCT tenant_id % 2147483648 AS number FROM touched ORDER BY 1) t;
    SELECT r.tenant_id, r.booked_day INTO late
    FROM (SELECT tenant_id, min(booked_day) AS booked_day FROM touched GROUP BY tenant_id) r
    WHERE r.booked_day < (SELECT max(month) + interval '1 month' FROM usage_statement s WHERE s.tenant_id = r.tenant_id);
    IF FOUND THEN
        RAISE EXCEPTION 'the month of % is closed for tenant %: % of % is refused',
            late.booked_day, late.tenant_id, TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER closed_inserted AFTER INSERT ON usage_record REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_month_closed();
CREATE TRIGGER closed_inserted AFTER INSERT ON usage_record_default REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_month_closed();
CREATE TRIGGER closed_inserted AFTER INSERT ON usage_dailyusage REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_month_closed();
CREATE TRIGGER closed_updated AFTER UPDATE ON usage_dailyusage REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_month_closed();
CREATE TRIGGER closed_moved AFTER UPDATE ON usage_dailyusage REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_month_closed();
CREATE TRIGGER closed_deleted AFTER DELETE ON usage_dailyusage REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_month_closed();

CREATE FUNCTION usage_statement_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a closed month stays as it is: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER final BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_statement
    FOR EACH STATEMENT EXECUTE FUNCTION usage_statement_final();
CREATE TRIGGER final BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_statementfile
    FOR EACH STATEMENT EXECUTE FUNCTION usage_statement_final();
CREATE TRIGGER final BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_statementpiece
    FOR EACH STATEMENT EXECUTE FUNCTION usage_statement_final();
CREATE TRIGGER final BEFORE TRUNCATE ON usage_dailyusage
    FOR EACH STATEMENT EXECUTE FUNCTION usage_statement_final();

CREATE FUNCTION usage_file_complete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM usage_statementfile f JOIN usage_statementpiece p ON p.file_id = f.id
        WHERE f.id IN (SELECT file_id FROM touched) GROUP BY f.id HAVING sum(octet_length(p.content)) > f.size
    ) THEN
        RAISE EXCEPTION 'a file of a closed month is complete: % of % is refused', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER complete AFTER INSERT ON usage_statementpiece REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_file_complete();
"""

DROP_CLOSED = """
DROP TRIGGER complete ON usage_statementpiece;
DROP FUNCTION usage_file_complete();
DROP TRIGGER final ON usage_dailyusage;
DROP TRIGGER final ON usage_statementpiece;
DROP TRIGGER final ON usage_statementfile;
DROP TRIGGER final ON usage_statement;
DROP FUNCTION usage_statement_final();
DROP FUNCTION usage_month_closed() CASCADE;
"""

PRICES = """
CREATE FUNCTION usage_price_used() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'calls were charged at price %: % is refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER used BEFORE UPDATE OR DELETE ON usage_price
    FOR EACH ROW WHEN (OLD.used_at IS NOT NULL) EXECUTE FUNCTION usage_price_used();
"""

DROP_PRICES = """
DROP TRIGGER used ON usage_price;
DROP FUNCTION usage_price_used();
"""

DROP = """
DROP TABLE usage_record;
DROP FUNCTION usage_record_append_only();
"""


def create_first_partitions(apps, schema_editor):
    create_partitions(dt.datetime.now(dt.UTC).date(), schema_editor.connection)


class Migration(migrations.Migration):
    dependencies = [("usage", "0001_initial")]

    operations = [
        migrations.RunSQL(TABLE, DROP),
        migrations.RunSQL(CLOSED, DROP_CLOSED),
        migrations.RunSQL(PRICES, DROP_PRICES),
        migrations.RunPython(create_first_partitions, migrations.RunPython.noop),
    ]
