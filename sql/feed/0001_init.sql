-- The hub's feed: the current row of every synced key, compacted, with the position of its last change for each audience.

CREATE TABLE hub (
  id         INTEGER PRIMARY KEY CHECK (id = 1),
  file       TEXT NOT NULL DEFAULT (lower(hex(randomblob(8)))), -- names this feed: another one numbers its tables in another way
  epoch      TEXT NOT NULL,              -- names one seq space
  seq        INTEGER NOT NULL DEFAULT 0, -- head: the highest seq given out
  commit_lsn TEXT NOT NULL,              -- end LSN of the last txn in the feed: what the slot may be told
  commit_xid INTEGER,
  commit_at  TEXT,
  life       TEXT,                       -- present and last life number, as written to schoolbus.hub
  life_last  TEXT,
  system_id  TEXT,                       -- of the Postgres cluster
  cluster    TEXT,                       -- name of head office, as in schoolbus.hub
  timeline   INTEGER,
  looked     INTEGER NOT NULL DEFAULT 0, -- seq at which the catalog and the publication were last as the stream was opened with
  publication TEXT,                      -- JSON, table -> mark of its place in the publication that pgoutput read
  tables_hash TEXT,                      -- the manifest's content; a change raises manifest
  manifest   INTEGER NOT NULL DEFAULT 0
);

-- columns: JSON list of names, in the order of the rows' values.
CREATE TABLE tables (
  id       INTEGER PRIMARY KEY AUTOINCREMENT, -- another one when a table was taken out and put back
  name     TEXT NOT NULL UNIQUE,         -- "public.students"
  columns  TEXT NOT NULL,
  class    INTEGER NOT NULL,             -- 10 critical … 1 background
  audience TEXT NOT NULL,                -- JSON of the rule its entries were routed by
  status   TEXT NOT NULL,                -- loading, ready; hidden: rows that place others and come down to nobody; up: rows that are not read
  shape    TEXT NOT NULL,                -- JSON of the shape that was accepted last, and of what the schools are told
  recheck  INTEGER NOT NULL DEFAULT 0,   -- its rows are to be compared with Postgres by key
  paused   TEXT,                         -- JSON of why its changes are not taken; null = they are
  since    INTEGER,                      -- paused, or to be compared: what txns wrote after this seq may not have been taken from the stream
  accept   INTEGER NOT NULL DEFAULT 0,   -- a person accepts the shape that is found next
  after    TEXT                          -- loading: wire key of the last row whose bracket has closed
);

-- no 0: every school; no -1: nobody; neither has a value, as a column may hold any. Others: one value of an audience column,
-- whether or not a school has that id.
CREATE TABLE audience (
  no    INTEGER PRIMARY KEY,
  value TEXT UNIQUE
);
INSERT INTO audience (no, value) VALUES (0, NULL), (-1, NULL);

-- One entry per (audience, key). body: the row as a JSON array in the order of tables.columns; null = tombstone.
-- A row of a through table has an entry for every audience of its links.
-- was: what stood here before, in the version that the school has which reads these entries (of every school's: the one that is
-- furthest behind): seqs from was_from to before was_to. Kept of tables that schools write, until a newer one takes its place;
-- was_from null = none is known. A school whose own triggers were away learns from it what a program of its own wrote.
-- class is negative while the table is loading, and of rows that only travel up: such entries are in no cut.
-- Not WITHOUT ROWID: a search there reads every row whole that it passes, so that one body of some megabytes would slow them all.
CREATE TABLE entry (
  audience INTEGER NOT NULL,
  class    INTEGER NOT NULL,
  seq      INTEGER NOT NULL,
  tbl      INTEGER NOT NULL,
  key      TEXT NOT NULL,
  at       INTEGER NOT NULL,             -- commit time, microseconds since 1970
  born     INTEGER NOT NULL,             -- seq with which the audience first got the key
  was_from INTEGER,
  was_to   INTEGER,
  body     TEXT,
  was      TEXT
);
CREATE UNIQUE INDEX entry_seq ON entry (audience, class, seq, tbl); -- tbl: what waits is counted without the rows
CREATE UNIQUE INDEX entry_key ON entry (tbl, key, audience);

-- What rows of through tables (side 0) and their links (side 1) are matched by: a JSON list of texts. rule: the id of the
-- table that is placed. A row with a NULL there has none.
CREATE TABLE tie (
  rule  INTEGER NOT NULL,
  side  INTEGER NOT NULL,
  key   TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (rule, side, key)
) WITHOUT ROWID;
CREATE INDEX tie_value ON tie (rule, side, value, key);

-- Values whose links changed in the open transaction: the rows that they place are looked at before it ends. Else empty.
CREATE TABLE touched (
  rule  INTEGER NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (rule, value)
) WITHOUT ROWID;

-- Of tables with columns that the newer write decides: JSON object, column -> [commit time in microseconds, xid] of its last
-- change, null = unknown; "*" = all that are not named. No row: every column is as old as the entry.
CREATE TABLE column_time (
  tbl   INTEGER NOT NULL,
  key   TEXT NOT NULL,
  times TEXT NOT NULL,
  PRIMARY KEY (tbl, key)
) WITHOUT ROWID;

-- Keys that a keyed comparison has not met again yet; what is left at its end no longer exists in Postgres. The empty key
-- stands for the comparison itself.
CREATE TABLE unmet (
  tbl INTEGER NOT NULL,
  key TEXT NOT NULL,
  PRIMARY KEY (tbl, key)
) WITHOUT ROWID;

-- After Postgres was put back: tables that are compared with it, and rows as the feed held them where it differs.
-- names: JSON list of columns; was: as entry.body, null = head office had deleted the row.
CREATE TABLE losing (
  tbl  INTEGER PRIMARY KEY,
  at   INTEGER NOT NULL,                 -- when it was noticed, ms since 1970
  done INTEGER NOT NULL
);
CREATE TABLE lost (
  tbl   INTEGER NOT NULL,
  key   TEXT NOT NULL,
  names TEXT NOT NULL,
  was   TEXT,
  PRIMARY KEY (tbl, key)
) WITHOUT ROWID;

-- Rows whose message left something out that the feed does not know: read again by key, outside the stream.
-- why: toast (a column stored out of line), nan (a null that may stand for NaN or Infinity); table: the whole table is
-- to be compared, under the empty key.
CREATE TABLE reread (
  tbl INTEGER NOT NULL,
  key TEXT NOT NULL,
  why TEXT NOT NULL,
  PRIMARY KEY (tbl, key)
) WITHOUT ROWID;

-- A head of the feed and its random name. Pruned when no school can hold it any more.
CREATE TABLE cut (
  seq INTEGER PRIMARY KEY,
  id  TEXT NOT NULL
);

-- One row per life of a school's file, as far as the link knows it. token: the newest handed out; shown: it was used.
CREATE TABLE reader (
  incarnation TEXT PRIMARY KEY,
  school      TEXT NOT NULL,
  token       INTEGER NOT NULL DEFAULT 0,
  secret      TEXT NOT NULL DEFAULT '',
  secret_last TEXT NOT NULL DEFAULT '',
  shown       INTEGER NOT NULL DEFAULT 0,
  epoch       TEXT NOT NULL DEFAULT '',
  seq         INTEGER NOT NULL DEFAULT 0, -- of the last applied cut it told us
  cut         TEXT NOT NULL DEFAULT '0',
  batch       INTEGER NOT NULL DEFAULT 0,
  pending     INTEGER,                    -- changes not yet pushed, as the school said
  seen_at     INTEGER NOT NULL DEFAULT 0, -- ms since 1970
  status      TEXT,                       -- JSON of the school's last heartbeat
  closed      INTEGER NOT NULL DEFAULT 0
);

-- What a person has set while the hub runs; JSON by name.
CREATE TABLE schoolbus_setting (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;
