-- What a DBA asks first: does the slot hold back WAL, how long is there still time, and which schools are behind.

-- What the hub last knew of each school, at most a minute old while the hub runs.
CREATE TABLE schoolbus.school_status (
  school            text PRIMARY KEY REFERENCES schoolbus.schools (id) ON DELETE CASCADE,
  state             text NOT NULL,
  reason            text NOT NULL,
  seq               bigint NOT NULL,
  lag_rows          bigint NOT NULL,
  pending           bigint NOT NULL,
  oldest_pending_at timestamptz,
  seen_at           timestamptz,
  as_of             timestamptz NOT NULL
);

-- Where the WAL ended, once a minute: two of these give the rate at which a stopped slot grows.
CREATE TABLE schoolbus.wal_samples (
  at  timestamptz PRIMARY KEY,
  lsn pg_lsn NOT NULL
);

CREATE INDEX conflicts_waiting ON schoolbus.conflicts (school, table_name) WHERE status = 'open';
CREATE INDEX quarantine_waiting ON schoolbus.quarantine (school, table_name) WHERE status = 'open';
CREATE INDEX conflicts_batch ON schoolbus.conflicts (incarnation, batch);
CREATE INDEX ledger_newest ON schoolbus.ledger (at);

-- Every logical slot of this database; the hub's is called schoolbus... by default.
--   lag_bytes       WAL that the hub has not confirmed        retained_bytes  WAL that the server keeps because of the slot
--   safe_wal_bytes  what may still be written before the slot is lost; null = max_slot_wal_keep_size is -1: the disk is the limit
--   lag_seconds     by the walsender's own measure; of a stopped slot: since the hub last wrote down where it stands
-- Lag is never below 0: a consumer confirms up to the byte after the last commit. inactive_since exists from Postgres 17 on.
--   budget_bytes    max_slot_wal_keep_size; without one the disk is the limit, and 4 GiB is what a slot should never hold
--   budget_used     per cent of it | stage: ok, warning (from 50 on), critical (from 80 on, or an hour is left), lost, making (no position yet)
--   waits_for       of one that is being made: the transaction whose end it waits for, with the statement that ends it; null = nothing
--   advice          what to do about a stage that is not ok; null = nothing
CREATE VIEW schoolbus.slot_health AS
WITH now_at AS (
  SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn
), growth AS (
  SELECT greatest(pg_wal_lsn_diff(n.lsn, s.lsn), 0) / greatest(extract(epoch FROM now() - s.at), 1)::numeric AS per_second
    FROM now_at n, (SELECT at, lsn FROM schoolbus.wal_samples WHERE at < now() - interval '50 seconds' ORDER BY at LIMIT 1) s
), keep AS (
  SELECT CASE WHEN current_setting('max_slot_wal_keep_size') = '-1' THEN 4294967296 ELSE pg_size_bytes(current_setting('max_slot_wal_keep_size')) END AS bytes
), held AS (
  SELECT s.*, to_jsonb(s) ->> 'inactive_since' AS since, n.lsn AS now_lsn, k.bytes AS budget,
         CASE WHEN s.confirmed_flush_lsn IS NOT NULL THEN greatest(pg_wal_lsn_diff(n.lsn, s.confirmed_flush_lsn), 0) END AS lag,
         greatest(pg_wal_lsn_diff(n.lsn, s.restart_lsn), 0) AS retained
    FROM pg_replication_slots s, now_at n, keep k
   WHERE s.slot_type = 'logical' AND s.database = current_database()
), slot AS (
  SELECT h.*, CASE WHEN h.wal_status = 'lost' THEN 100
                   WHEN h.safe_wal_size IS NULL THEN round(100 * h.retained / h.budget)
                   ELSE round(100 * (h.budget - least(greatest(h.safe_wal_size, 0), h.budget)) / greatest(h.budget, 1)) END AS used,
         CASE WHEN h.safe_wal_size IS NOT NULL AND g.per_second > 0 THEN (greatest(h.safe_wal_size, 0) / g.per_second)::bigint END AS seconds_left
    FROM held h LEFT JOIN growth g ON true
), staged AS (
  SELECT s.*, CASE WHEN s.wal_status = 'lost' THEN 'lost'
                   WHEN s.lag IS NULL THEN 'making'
                   WHEN s.wal_status = 'unreserved' OR s.used >= 80 OR (NOT s.active AND s.seconds_left < 3600) THEN 'critical'
                   WHEN s.used >= 50 THEN 'warning' ELSE 'ok' END AS stage
    FROM slot s
)
SELECT s.slot_name::text AS slot_name,
       s.database::text AS database,
       s.plugin::text AS plugin,
       s.active,
       s.wal_status,
       s.retained::bigint AS retained_bytes,
       s.lag::bigint AS lag_bytes,
       round(CASE
         WHEN s.lag IS NULL THEN NULL
         WHEN s.lag = 0 THEN 0
         WHEN s.active THEN coalesce(extract(epoch FROM r.flush_lag), 0)::numeric
         ELSE extract(epoch FROM now() - coalesce(s.since::timestamptz, h.at))::numeric
       END, 1) AS lag_seconds,
       s.safe_wal_size AS safe_wal_bytes,
       round(g.per_second, 1) AS growth_bytes_per_second,
       s.seconds_left AS time_left_seconds,
       s.since::timestamptz AS inactive_since,
       current_setting('max_slot_wal_keep_size') AS max_slot_wal_keep_size,
       s.budget AS budget_bytes,
       s.used::integer AS budget_used,
       s.stage,
       CASE
         WHEN s.stage = 'ok' THEN NULL
         WHEN s.stage = 'making' THEN 'it is made once all that was open before has ended' || coalesce('; it waits for ' || w.what, '')
         WHEN s.stage = 'lost' THEN 'Postgres removed WAL that it needed: its consumer must begin anew (the hub does so by itself and compares all rows)'
         WHEN s.active THEN 'it is read, but WAL grows faster: see what holds its consumer up, or raise max_slot_wal_keep_size'
         ELSE format('nobody reads it: start its consumer (the hub), raise max_slot_wal_keep_size, or give it up with SELECT pg_drop_replication_slot(%L);', s.slot_name)
       END AS advice,
       w.what AS waits_for
  FROM staged s
  LEFT JOIN LATERAL (
    SELECT CASE WHEN p.gid IS NOT NULL
             THEN format('prepared transaction %L of database %s, of %s; it is ended in that database: ROLLBACK PREPARED %1$L; (or COMMIT PREPARED)', p.gid, p.database, p.prepared)
             ELSE format('a transaction of process %s%s%s; to end it at once: SELECT pg_terminate_backend(%1$s);', b.pid,
                    coalesce(' (' || nullif(concat_ws(', ', a.usename, a.datname, nullif(a.application_name, '')), '') || ')', ''), coalesce(', open since ' || a.xact_start, '')) END AS what
      FROM pg_locks l
      LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
      LEFT JOIN LATERAL unnest(pg_blocking_pids(l.pid)) AS b (pid) ON b.pid <> 0
      LEFT JOIN pg_stat_activity a ON a.pid = b.pid
     WHERE s.stage = 'making' AND l.pid = s.active_pid AND l.locktype = 'transactionid' AND NOT l.granted AND (p.gid IS NOT NULL OR b.pid IS NOT NULL)
     LIMIT 1
  ) w ON true
  LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
  LEFT JOIN schoolbus.hub h ON h.id = 1
  LEFT JOIN growth g ON true;

-- Every enrolled school. A change that waits for another unique value counts among the conflicts, where it is decided. stale: the hub has not written for three minutes, so its part of the row is an old one.
CREATE VIEW schoolbus.school_health AS
SELECT c.id AS school,
       c.name,
       CASE WHEN c.revoked_at IS NOT NULL THEN 'revoked' WHEN c.paused THEN 'paused' ELSE coalesce(s.state, 'new') END AS state,
       coalesce(s.reason, '') AS reason,
       s.lag_rows,
       s.pending,
       s.oldest_pending_at,
       s.seen_at,
       round(extract(epoch FROM now() - s.seen_at)::numeric, 0) AS seen_seconds_ago,
       (SELECT count(*) FROM schoolbus.conflicts f WHERE f.school = c.id AND f.status = 'open') AS open_conflicts,
       (SELECT count(*) FROM schoolbus.quarantine q WHERE q.school = c.id AND q.status = 'open'
           AND NOT EXISTS (SELECT 1 FROM schoolbus.conflicts f WHERE f.quarantine = q.id AND f.status = 'open')) AS quarantined,
       s.as_of,
       coalesce(s.as_of < now() - interval '3 minutes', true) AS stale
  FROM schoolbus.schools c LEFT JOIN schoolbus.school_status s ON s.school = c.id;
