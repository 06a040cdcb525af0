-- Head office's side of the sync. Everything the stream must tell a school is a row of a table here, written in the
-- transaction that it speaks of.
CREATE SCHEMA IF NOT EXISTS schoolbus;

CREATE TABLE schoolbus.schools (
  id         text PRIMARY KEY CHECK (id <> '' AND length(id) <= 200),
  name       text NOT NULL,
  number     integer NOT NULL GENERATED ALWAYS AS IDENTITY UNIQUE, -- names the range of bigint keys that the school may give out
  paused     boolean NOT NULL DEFAULT false,
  revoked_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- Only the SHA-256 of a key's secret is kept; the key itself is printed once.
CREATE TABLE schoolbus.school_keys (
  id         text PRIMARY KEY,
  school     text NOT NULL REFERENCES schoolbus.schools (id),
  hash       text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);

-- One row per life of a school's file; last_batch is the head of its ledger and the lock that orders its batches.
-- origin: the first life of a file that has had others, of all of them; null = this is the only one.
CREATE TABLE schoolbus.incarnations (
  id         uuid PRIMARY KEY,
  school     text NOT NULL REFERENCES schoolbus.schools (id),
  last_batch bigint NOT NULL DEFAULT 0,
  origin     uuid,
  created_at timestamptz NOT NULL DEFAULT now(),
  closed_at  timestamptz
);

-- One row per batch, written in the batch's own transaction. exceptions: JSON list of the changes that were not plainly applied.
CREATE TABLE schoolbus.ledger (
  incarnation uuid NOT NULL,
  batch       bigint NOT NULL,
  school      text NOT NULL,
  hash        text NOT NULL,
  changes     integer NOT NULL,
  exceptions  text NOT NULL,
  at          timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (incarnation, batch)
);

CREATE INDEX incarnations_origin ON schoolbus.incarnations (origin) WHERE origin IS NOT NULL;

-- Which changes each batch carried, 8 bytes for each (src/up/taken.ts): a copy of the file brings them once more in another life.
CREATE TABLE schoolbus.taken (
  incarnation  uuid NOT NULL,
  batch        bigint NOT NULL,
  first_change bigint NOT NULL,
  last_change  bigint NOT NULL,
  prints       bytea NOT NULL,
  at           timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (incarnation, batch)
);
CREATE INDEX taken_at ON schoolbus.taken USING brin (at);

-- One row per disagreement: of a column, or of a whole row (column_name is null: one side deleted or both inserted).
-- base, mine (the school's), theirs (head office's) and kept are JSON values, or JSON objects for whole rows; null = no row.
-- mine_at, theirs_at: when either side wrote it; null = unknown. hold: the school shows its own value until the record is
-- decided. undo: JSON of what stood before a person's decision.
-- kind unique: another row has the value of column_name already (unique_columns: all that must differ together). theirs is
-- that row when the school may see it, else null: taken. suggestion: a free value. quarantine: the change that waits.
CREATE TABLE schoolbus.conflicts (
  id          uuid PRIMARY KEY,
  school      text NOT NULL,
  incarnation uuid NOT NULL,
  batch       bigint NOT NULL,
  change_id   bigint NOT NULL,
  table_name  text NOT NULL,
  row_key     text NOT NULL,
  column_name text,
  base        text,
  mine        text,
  theirs      text,
  kept        text,
  winner      text NOT NULL CHECK (winner IN ('school', 'vps', 'merged', 'open')),
  strategy    text NOT NULL,
  reason      text NOT NULL,
  status      text NOT NULL CHECK (status IN ('decided', 'open', 'resolved')),
  at          timestamptz NOT NULL DEFAULT now(),
  mine_at     timestamptz,
  theirs_at   timestamptz,
  decided_by  text,
  decided_at  timestamptz,
  kind        text NOT NULL DEFAULT 'column' CHECK (kind IN ('column', 'row', 'unique')),
  hold        boolean NOT NULL DEFAULT false,
  undo        text,
  unique_columns text,
  suggestion  text,
  quarantine  uuid,
  manifest    bigint NOT NULL DEFAULT 0  -- from which on its columns and its key are named so
);
CREATE INDEX conflicts_quarantine ON schoolbus.conflicts (quarantine) WHERE quarantine IS NOT NULL;
CREATE INDEX conflicts_open ON schoolbus.conflicts (school, status, at);
CREATE INDEX conflicts_row ON schoolbus.conflicts (table_name, row_key);

-- Changes that could not be written, kept whole.
CREATE TABLE schoolbus.quarantine (
  id          uuid PRIMARY KEY,
  school      text NOT NULL,
  incarnation uuid NOT NULL,
  batch       bigint NOT NULL,
  change_id   bigint NOT NULL,
  table_name  text NOT NULL,
  row_key     text NOT NULL,
  op          text NOT NULL,
  change      text NOT NULL,
  reason      text NOT NULL,
  detail      text NOT NULL,
  status      text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'retried', 'discarded')),
  at          timestamptz NOT NULL DEFAULT now(),
  decided_by  text,
  decided_at  timestamptz
);
CREATE INDEX quarantine_open ON schoolbus.quarantine (school, status, at);
CREATE INDEX quarantine_row ON schoolbus.quarantine (table_name, row_key) WHERE status = 'open';

-- Decisions that people made in a school: carried out in the transaction of the push that brings them. choice: JSON.
-- target: id of the conflict or quarantined change; of action differs, which a node makes itself, a table. status: sent, done, refused (message says why).
CREATE TABLE schoolbus.requests (
  id      uuid PRIMARY KEY,
  school  text NOT NULL,
  action  text NOT NULL,
  target  text NOT NULL,
  choice  text,
  by      text NOT NULL,
  at      text NOT NULL,
  status  text NOT NULL DEFAULT 'sent',
  message text
);
CREATE INDEX requests_school ON schoolbus.requests (school, at);

-- What triggers of head office made of sent values, for the last batches of a file: its next edit may still start from
-- what it sent. sent and stored are JSON values.
CREATE TABLE schoolbus.stored (
  incarnation uuid NOT NULL,
  batch       bigint NOT NULL,
  table_name  text NOT NULL,
  row_key     text NOT NULL,
  column_name text NOT NULL,
  sent        text NOT NULL,
  stored      text NOT NULL
);
CREATE INDEX stored_row ON schoolbus.stored (table_name, row_key);
CREATE INDEX stored_batch ON schoolbus.stored (incarnation, batch);

-- When schools captured what they pushed, for columns that the newer write decides: at, ms since 1970. xid: the push's own,
-- row_xid: what xmin of the row said after it. column_name: the column's number, as schools are told it; * for an inserted row,
-- - for a deleted one.
CREATE TABLE schoolbus.column_times (
  table_name  text NOT NULL,
  row_key     text NOT NULL,
  column_name text NOT NULL,
  at          bigint NOT NULL,
  xid         bigint NOT NULL,
  row_xid     bigint NOT NULL,
  written_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (table_name, row_key, column_name)
);
CREATE INDEX column_times_written ON schoolbus.column_times (written_at);

-- The end of a read outside the stream: when this row arrives in the stream, everything the read could see has arrived.
CREATE TABLE schoolbus.marks (
  id text PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT now()
);

-- The hub's life number, and the last transaction that the feed held when it was written.
-- cluster names this head office for its schools; a dump carries it into another server.
CREATE TABLE schoolbus.hub (
  id   integer PRIMARY KEY CHECK (id = 1),
  cluster text NOT NULL DEFAULT gen_random_uuid()::text,
  life text NOT NULL,
  lsn  text NOT NULL,
  at   timestamptz NOT NULL DEFAULT now()
);
