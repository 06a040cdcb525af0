-- The sync's own tables in a school's file. Programs of the school may read them; only the node writes them.

CREATE TABLE schoolbus_state (
  id          INTEGER PRIMARY KEY CHECK (id = 1),
  incarnation TEXT NOT NULL,             -- one life of this file
  origin      TEXT,                      -- its first life; null = this is the first
  school      TEXT,                      -- id that the key belongs to, once the hub has said it
  cluster     TEXT,                      -- identity of head office's Postgres, as first met
  token       TEXT NOT NULL DEFAULT '',  -- shown to the hub at hello; the hub hands out the next
  epoch       TEXT NOT NULL DEFAULT '',  -- cursor of the last applied cut
  seq         INTEGER NOT NULL DEFAULT 0,
  cut         TEXT NOT NULL DEFAULT '0',
  manifest    TEXT,                      -- JSON, as applied to this file
  last_batch  INTEGER NOT NULL DEFAULT 0,-- number of the newest frozen batch
  frozen_to   INTEGER NOT NULL DEFAULT 0,-- every open change has an id beyond this one
  applying    TEXT,                      -- JSON of the cut that is being applied in chunks, while rows of it may show; null = none
  schema_version INTEGER NOT NULL DEFAULT -1,-- SQLite's, when our triggers were last found sound
  contact_at  INTEGER NOT NULL DEFAULT 0,-- own time of the last contact, ms since 1970
  terminals   INTEGER NOT NULL DEFAULT 0,-- 1: this file knows the terminals and pins that head office has of the school; 2: so, in a new life
  stop        TEXT                       -- named reason why this node does not sync: cloned, restored, wrong_cluster, schema_ahead
);

-- When the hub was heard, by both clocks (ms since 1970), and the last write that had been captured by then.
CREATE TABLE schoolbus_contact (
  change INTEGER PRIMARY KEY,
  own    INTEGER NOT NULL,
  server INTEGER NOT NULL
);

-- Set inside deliver's own transaction only, so no other connection ever sees 1.
CREATE TABLE schoolbus_deliver (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  active INTEGER NOT NULL DEFAULT 0
);
INSERT INTO schoolbus_deliver (id, active) VALUES (1, 0);

-- Names of captured tables, so that a change carries a small number.
CREATE TABLE schoolbus_tables (
  id    INTEGER PRIMARY KEY,
  name  TEXT NOT NULL UNIQUE,            -- "public.students"
  local TEXT NOT NULL UNIQUE,            -- "students"
  gone  INTEGER NOT NULL DEFAULT 0,      -- 1: it left the manifest and is emptied once its changes have verdicts
  renewed INTEGER NOT NULL DEFAULT 0     -- 1: it has another key; what the next cut does not name of its rows is of before
);

-- Our triggers, and the unique indexes they know of, as they were installed: what differs is a gap.
CREATE TABLE schoolbus_installed (
  tbl  INTEGER NOT NULL,
  name TEXT NOT NULL,                    -- of a trigger; 'uniques'
  text TEXT NOT NULL,
  PRIMARY KEY (tbl, name)
) WITHOUT ROWID;

-- Tables whose writes went uncaptured for a while, until they have been compared with head office.
CREATE TABLE schoolbus_gap (
  tbl      INTEGER PRIMARY KEY,
  reason   TEXT NOT NULL,
  lost     TEXT NOT NULL,                -- JSON list of columns that were gone and are empty now
  first_id INTEGER NOT NULL,             -- ids of changes from here on are kept free for what is found
  anew     INTEGER NOT NULL DEFAULT 0,   -- 1: its rows may be older than the cursor, so what differs comes again
  at       INTEGER NOT NULL
);

-- Tables of the manifest that the file cannot hold as they stand, until they fit: they pause, each alone.
CREATE TABLE schoolbus_unfit (
  name   TEXT PRIMARY KEY,               -- "public.students"
  reason TEXT NOT NULL,                  -- "is a view in this file"
  remedy TEXT NOT NULL,
  taken  INTEGER NOT NULL DEFAULT 0,     -- 1: a program's own table with rows, never synced
  torn   INTEGER NOT NULL DEFAULT 0,     -- 1: its rows may be older than the cursor
  at     INTEGER NOT NULL
) WITHOUT ROWID;

-- Large tables that are being built anew beside the old ones, a slice at a time.
CREATE TABLE schoolbus_rebuild (
  tbl   INTEGER PRIMARY KEY,
  sql   TEXT NOT NULL,                   -- of the new table: another one is wanted no more
  since INTEGER NOT NULL,                -- the last change that the copies hold
  owed  TEXT NOT NULL,                   -- JSON list of local keys that stay to be copied
  done  INTEGER NOT NULL
);

-- Unique constraints of head office that rows here do not keep, until they do.
CREATE TABLE schoolbus_unenforced (
  tbl     INTEGER NOT NULL,
  columns TEXT NOT NULL,                 -- JSON list
  rows    INTEGER NOT NULL,              -- that share their values with another row
  example TEXT NOT NULL,                 -- some of them, for people
  keys    TEXT NOT NULL,                 -- JSON list of their local keys
  at      INTEGER NOT NULL,              -- when it was last looked at, ms since 1970
  PRIMARY KEY (tbl, columns)
) WITHOUT ROWID;

-- What triggers capture. op: I, U, D, or R (a row that a REPLACE was about to displace, seen just before).
-- v0, v1 … are the old values in the table's column order (of I: only the key), stored natively; more are added as tables need.
-- batch: the frozen batch that carries it; null = not frozen yet; 0 = it waits until its table fits again. Rows leave when their batch's ledger row has come down.
CREATE TABLE changes (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  tbl     INTEGER NOT NULL,
  op      TEXT NOT NULL,
  key     TEXT NOT NULL,                 -- local key before the write (of I: the new one)
  new_key TEXT,                          -- local key after it, when an update changed it
  at      INTEGER NOT NULL,              -- ms since 1970, this machine's clock
  batch   INTEGER,
  v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15
);
-- By key only what is asked by key: frozen changes by deliver, open ones by freeze, which looks for a row's next old values.
-- A program's insert pays for none of them; open changes are found by their ids, from frozen_to on.
CREATE INDEX changes_key ON changes (tbl, key) WHERE batch IS NOT NULL;
CREATE INDEX changes_new_key ON changes (tbl, new_key) WHERE new_key IS NOT NULL;
CREATE INDEX changes_open_key ON changes (tbl, key) WHERE batch IS NULL AND op <> 'I';
CREATE INDEX changes_batch ON changes (batch) WHERE batch IS NOT NULL;

-- Frozen batches: bytes that are sent again unchanged until the ledger row has come down, then kept 35 days.
CREATE TABLE schoolbus_batch (
  number     INTEGER PRIMARY KEY,
  hash       TEXT NOT NULL,              -- SHA-256 of what is sent, hex
  bytes      BLOB NOT NULL,              -- what is sent, as zstd
  changes    INTEGER NOT NULL,
  frozen_at  INTEGER NOT NULL,
  answered_at INTEGER,                   -- the hub's answer arrived (for the status; ends no shield)
  settled_at INTEGER,                    -- its ledger row came down
  settled_after INTEGER,                 -- seq of the cut before the one that it came with
  exceptions TEXT                        -- JSON, as in the ledger
);

-- The hub's latest state of a row that is not shown, because the row has pending changes here or cannot be applied.
CREATE TABLE schoolbus_behind (
  tbl   INTEGER NOT NULL,
  key   TEXT NOT NULL,                   -- local key
  row   TEXT,                            -- JSON object by column name; null = deleted at head office
  error TEXT,                            -- why it could not be applied, when that is the reason
  at    INTEGER NOT NULL,
  PRIMARY KEY (tbl, key)
) WITHOUT ROWID;
-- Those that are tried again after every cut.
CREATE INDEX schoolbus_behind_error ON schoolbus_behind (tbl, key) WHERE error IS NOT NULL;

-- Values that stay as the school wrote them until a person decides: the record is a conflict or a quarantined change.
CREATE TABLE schoolbus_hold (
  tbl    INTEGER NOT NULL,
  key    TEXT NOT NULL,
  col    TEXT NOT NULL,                  -- '' = the whole row
  record TEXT NOT NULL,
  at     INTEGER NOT NULL,
  PRIMARY KEY (tbl, key, col, record)
) WITHOUT ROWID;
CREATE INDEX schoolbus_hold_record ON schoolbus_hold (record);

-- Lines of a cut that is longer than one page, as received, in order; each page's header line before its rows.
CREATE TABLE schoolbus_stage (
  n    INTEGER PRIMARY KEY,
  cls  INTEGER,                          -- class and last seq of a rows line; null: a header
  seq  INTEGER,
  tbl  TEXT,                             -- "public.students"; null: a header
  rows INTEGER NOT NULL,
  line TEXT NOT NULL
);
CREATE INDEX schoolbus_stage_tbl ON schoolbus_stage (tbl, n);

-- How much of the cut under way is here, for each class: its last seq, and what came. It outlives the lines, which leave as they are applied.
CREATE TABLE schoolbus_staged (
  cls   INTEGER PRIMARY KEY,
  seq   INTEGER NOT NULL,
  rows  INTEGER NOT NULL,
  bytes INTEGER NOT NULL                 -- of the rows, as text
);

-- Keys that a full cut has named so far; what it has not named at its end is removed.
CREATE TABLE schoolbus_met (
  tbl INTEGER NOT NULL,
  key TEXT NOT NULL,
  PRIMARY KEY (tbl, key)
) WITHOUT ROWID;

-- What a column held before the hub's value was shown over it.
CREATE TABLE schoolbus_replaced (
  id    INTEGER PRIMARY KEY AUTOINCREMENT,
  tbl   INTEGER NOT NULL,
  key   TEXT NOT NULL,
  was   TEXT NOT NULL,                   -- JSON object by column name
  batch INTEGER,
  at    INTEGER NOT NULL
);

-- Writes of tables that worker modules listen to, captured and applied ones alike.
CREATE TABLE schoolbus_stream (
  id  INTEGER PRIMARY KEY AUTOINCREMENT,
  tbl TEXT NOT NULL,
  op  TEXT NOT NULL,
  key TEXT NOT NULL
);
CREATE TABLE schoolbus_worker (
  module  TEXT PRIMARY KEY,
  cursor  INTEGER NOT NULL DEFAULT 0,    -- last id of schoolbus_stream it has finished
  failed  INTEGER NOT NULL DEFAULT 0,
  error   TEXT
);
CREATE TABLE schoolbus_dead_letter (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  module TEXT NOT NULL,
  events TEXT NOT NULL,
  error  TEXT NOT NULL,
  at     INTEGER NOT NULL
);

-- Bytes over the link, by day of this machine's clock ("2026-03-01"), capped: what a daily budget is counted against.
CREATE TABLE schoolbus_traffic (
  day      TEXT PRIMARY KEY,
  sent     INTEGER NOT NULL DEFAULT 0,
  received INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- Sync runs, newest last, capped.
CREATE TABLE schoolbus_run (
  id       INTEGER PRIMARY KEY AUTOINCREMENT,
  trigger  TEXT NOT NULL,                -- start, change, stream, schedule; or who asked for it: api, cli, hub
  direction TEXT NOT NULL DEFAULT 'both',-- both, up, down
  started_at INTEGER NOT NULL,
  ended_at INTEGER,
  up       INTEGER NOT NULL DEFAULT 0,
  down     INTEGER NOT NULL DEFAULT 0,
  conflicts INTEGER NOT NULL DEFAULT 0,
  tables   TEXT NOT NULL DEFAULT '{}',   -- JSON: records by table and direction
  error    TEXT
);

-- What a person has set while the node runs; JSON by name.
CREATE TABLE schoolbus_setting (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- The last comparison with head office.
CREATE TABLE schoolbus_verified (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  at     INTEGER NOT NULL,               -- ms since 1970
  result TEXT NOT NULL                   -- JSON
);

-- Tables of people and terminals that were written since the terminals' rosters were last compared with them: marked by triggers in the
-- writing transaction. taken: the roster is at work on it; what is written meanwhile makes a mark of its own.
CREATE TABLE schoolbus_roster_dirty (
  tbl   TEXT NOT NULL,                   -- "students"; "*" = also what failed before; "=3" = everyone on terminal 3
  taken INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (tbl, taken)
) WITHOUT ROWID;

-- Lines of terminals that could not be read, kept as they came, each once.
CREATE TABLE schoolbus_iclock_reject (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  serial TEXT NOT NULL,
  "table" TEXT NOT NULL,
  raw    BLOB NOT NULL,
  reason TEXT NOT NULL,
  at     INTEGER NOT NULL,
  extra  INTEGER NOT NULL DEFAULT 0,     -- how often more one upload had it
  UNIQUE (serial, "table", raw)
);

-- Punches that one upload had more than once: the terminal holds so many records more than there are punches.
CREATE TABLE schoolbus_iclock_twin (
  punch TEXT PRIMARY KEY,                -- id in punches
  extra INTEGER NOT NULL
) WITHOUT ROWID;

-- What terminals report of themselves (menus entered, doors, errors), each line once, the newest of each terminal.
CREATE TABLE schoolbus_iclock_event (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  serial TEXT NOT NULL,
  raw    BLOB NOT NULL,
  at     INTEGER NOT NULL,
  UNIQUE (serial, raw)
);

-- Users that a terminal itself reported, as last seen: what it really holds, beside what it confirmed.
CREATE TABLE schoolbus_iclock_user (
  device_id INTEGER NOT NULL,
  pin  TEXT NOT NULL,
  name TEXT NOT NULL,
  card TEXT,
  privilege INTEGER NOT NULL DEFAULT 0,  -- above 0: may open the terminal's menu
  at   INTEGER NOT NULL,
  PRIMARY KEY (device_id, pin)
) WITHOUT ROWID;

-- The sync state of a row, for programs.
CREATE VIEW schoolbus_rows ("table", key, state, since, conflict_id) AS
  SELECT t.local, c.key, CASE WHEN max(c.batch IS NULL OR c.batch = 0) THEN 'pending' ELSE 'sending' END, min(c.at), NULL
    FROM changes c JOIN schoolbus_tables t ON t.id = c.tbl WHERE c.op <> 'R' GROUP BY c.tbl, c.key
  UNION ALL
  SELECT t.local, h.key, 'held', h.at, h.record
    FROM schoolbus_hold h JOIN schoolbus_tables t ON t.id = h.tbl
  UNION ALL
  SELECT t.local, b.key, 'behind', b.at, NULL
    FROM schoolbus_behind b JOIN schoolbus_tables t ON t.id = b.tbl WHERE b.error IS NOT NULL;
