"""The ledger's table: partitioned by month, append-only."""

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
    n integer NOT NULL,
    images integer NOT NULL,
    input_tokens bigint,
    output_tokens bigint,
    reported_tokens bigint,
    charged_tokens bigint NOT NULL,
    provenance text NOT NULL CHECK (provenance IN ('reported', 'derived', 'estimated', 'missing', 'decided')),
    price_per_image numeric(18, 8),
    price_per_million_tokens numeric(18, 8),
    cost numeric(30, 14),
    currency text NOT NULL,
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
    CHECK (kind IN ('correction', outcome))
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
        migrations.RunPython(create_first_partitions, migrations.RunPython.noop),
    ]
