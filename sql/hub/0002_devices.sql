-- Attendance terminals as the schools' nodes report them. Written by the nodes, read here; a school owns its own rows.
-- `devices` and `device_user_mappings` also come down again to a school whose file was made anew.
-- Times of a terminal are text as the terminal wrote them; everything else is timestamptz.

CREATE TABLE schoolbus.devices (
  school      text NOT NULL,
  id          integer NOT NULL,            -- given by the school's node: 1, 2, 3 ...
  serial      text NOT NULL,
  name        text NOT NULL,
  status      text NOT NULL,               -- pending, approved, retired
  zone        text NOT NULL,               -- IANA name: Africa/Nairobi
  address     text,                        -- last address it called from
  pinned_address text,                     -- only calls from here count: an address, or a net like 10.20.0.0/24
  family      text NOT NULL,               -- att: attendance; acc: access control (3.x)
  model       text,
  firmware    text,
  push_version text,
  users_reported integer,                  -- what the terminal itself says it holds
  punches_reported integer,
  skew_seconds integer,                    -- its clock minus ours, as last measured
  card_form   text,                        -- how it writes card numbers itself: decimal, bracket
  unsupported text NOT NULL,               -- commands that it said it does not know, by comma
  offset_told integer,                     -- minutes east of UTC, as last told to it
  replaced_by integer,                     -- the terminal that hangs there now
  att_stamp   text NOT NULL,               -- last ATTLOG stamp of an upload that we stored
  op_stamp    text NOT NULL,
  first_seen_at timestamptz NOT NULL,
  last_seen_at  timestamptz,
  approved_at timestamptz,
  PRIMARY KEY (school, id),
  UNIQUE (school, serial)
);

CREATE TABLE schoolbus.device_commands (
  school      text NOT NULL,
  device_id   integer NOT NULL,
  id          bigint NOT NULL,             -- as the terminal sees it: C:<id>:...
  command     text NOT NULL,
  pin         text,                        -- the person it is about
  status      text NOT NULL,               -- pending, sent, done, failed, cancelled, expired
  attempts    integer NOT NULL,
  result      integer,                     -- the terminal's Return
  error       text,
  created_at  timestamptz NOT NULL,
  expires_at  timestamptz,                 -- not sent after this; null: it waits for ever
  sent_at     timestamptz,
  done_at     timestamptz,
  PRIMARY KEY (school, device_id, id)
);

-- Whose pin it is. A pin of a terminal belongs to one person for ever; from_at and to_at say when the person held it.
CREATE TABLE schoolbus.device_user_mappings (
  school      text NOT NULL,
  device_id   integer NOT NULL,
  pin         text NOT NULL,
  person_table text NOT NULL,
  person_id   text NOT NULL,
  from_at     timestamptz NOT NULL,
  to_at       timestamptz,
  PRIMARY KEY (school, device_id, pin)
);

CREATE TABLE schoolbus.device_user_sync_status (
  school      text NOT NULL,
  device_id   integer NOT NULL,
  pin         text NOT NULL,
  person_table text NOT NULL,
  person_id   text NOT NULL,
  name        text NOT NULL,
  card        text,
  status      text NOT NULL,               -- pending, sent, synced, failed, deleted
  command_id  bigint,
  attempts    integer NOT NULL,
  error       text,
  synced_at   timestamptz,
  updated_at  timestamptz NOT NULL,
  PRIMARY KEY (school, device_id, pin)
);

CREATE TABLE schoolbus.punches (
  id            uuid PRIMARY KEY,
  school        text NOT NULL,
  device_serial text NOT NULL,
  pin           text NOT NULL,
  at            text NOT NULL,             -- wall clock of the terminal: 2026-03-03 07:41:09
  status        text NOT NULL,
  verify        text NOT NULL,
  at_utc        timestamptz,               -- the same moment, by the terminal's zone
  zone          text NOT NULL,
  skew_seconds  integer,                   -- the terminal's clock minus the node's, when this upload told it
  work_code     text,
  raw           text NOT NULL,             -- the line as it came
  person_table  text,                      -- null: nobody is known under this pin
  person_id     text,
  flags         text,                      -- e.g. future, past, skew
  received_at   timestamptz NOT NULL,
  UNIQUE (school, device_serial, at, pin, status, verify)
);
CREATE INDEX punches_person ON schoolbus.punches (school, person_id, at_utc);
