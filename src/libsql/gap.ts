/**
 * Writes that no trigger saw. A program of the school may rebuild or alter a synced table, drop our triggers or add a unique
 * index; SQLite's schema_version tells that something of the kind happened. While a table has a gap nothing of it is frozen and nothing is
 * pulled; `down/reconcile.ts` closes it.
 */
import * as Effect from "effect/Effect"
import { sameName } from "../model/table.ts"
import { LibsqlError, type LibsqlFile, type Tx } from "./client.ts"
import type { TriggerState } from "./triggers.ts"
import { readUniques } from "./uniques.ts"

/** Ids of changes that are kept free for what a comparison finds: it has happened before everything captured since. */
export const RESERVED_IDS = 1_000_000

export interface Gap {
  readonly tbl: number
  /** `"public.students"` */
  readonly name: string
  readonly reason: string
  readonly lost: ReadonlyArray<string>
  readonly firstId: number
  /** 1: its rows may be older than the cursor, so what differs comes again. */
  readonly anew: number
  /** ms since 1970: when it was noticed. */
  readonly at: number
}

const UNIQUES = "uniques"

/** Remembers what has just been installed as sound. */
export const noteInstalled = (tx: Tx, triggers: TriggerState): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const rows = triggers.captured.flatMap(({ tbl, triggers: list, uniques }) => [
      ...list.map(({ name, sql }) => [tbl, name, sql] as const),
      [tbl, UNIQUES, uniques] as const,
    ])
    yield* tx.run("DELETE FROM schoolbus_installed")
    yield* tx.run("INSERT INTO schoolbus_installed (tbl, name, text) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)", [
      JSON.stringify(rows),
    ])
    yield* noteSound(tx)
  })

/** The schema as it is now is one that we made or have looked at. */
export const noteSound = (tx: Tx) => tx.run("UPDATE schoolbus_state SET schema_version = (SELECT schema_version FROM pragma_schema_version)")

interface Found {
  readonly tbl: number
  readonly reason: string
  readonly anew?: boolean
}

/** Tables whose triggers or unique indexes are not as they were installed; those that are gone are not among them. */
export const findGaps = (tx: Tx): Effect.Effect<ReadonlyArray<Found>, LibsqlError> =>
  Effect.gen(function* () {
    const away = yield* tx.all<{ tbl: number; names: string }>(
      `SELECT i.tbl, group_concat(i.name, ', ') AS names FROM schoolbus_installed i JOIN schoolbus_tables t ON t.id = i.tbl
         JOIN sqlite_master m ON m.type = 'table' AND m.name = t.local COLLATE NOCASE
        WHERE i.name <> '${UNIQUES}' AND NOT EXISTS (SELECT 1 FROM sqlite_master s WHERE s.type = 'trigger' AND s.name = i.name AND s.sql = i.text)
        GROUP BY i.tbl`,
    )
    const found = away.map(({ tbl, names }): Found => ({ tbl, reason: `a program rebuilt or altered the table, or dropped triggers (${names})` }))
    const off = yield* tx.all<{ tbl: number }>(
      `SELECT DISTINCT i.tbl FROM schoolbus_installed i JOIN schoolbus_tables t ON t.id = i.tbl JOIN sqlite_master m ON m.type = 'table' AND m.name = t.local COLLATE NOCASE
        WHERE i.name <> '${UNIQUES}' AND coalesce((SELECT active FROM schoolbus_deliver), 1) <> 0`,
    )
    if (off.length > 0) yield* tx.run("INSERT INTO schoolbus_deliver (id, active) VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET active = 0")
    for (const { tbl } of off)
      if (!found.some((one) => one.tbl === tbl)) found.push({ tbl, reason: "a program turned the triggers off (schoolbus_deliver) and left them so" })
    // Rows that REPLACE displaced through a unique index that the triggers did not know of went unseen.
    const uniques = yield* readUniques(tx)
    const known = yield* tx.all<{ tbl: number; local: string; text: string }>(
      `SELECT i.tbl, t.local, i.text FROM schoolbus_installed i JOIN schoolbus_tables t ON t.id = i.tbl WHERE i.name = '${UNIQUES}'`,
    )
    for (const { tbl, local, text } of known) {
      if (found.some((one) => one.tbl === tbl)) continue
      const before = new Set((JSON.parse(text) as ReadonlyArray<unknown>).map((one) => JSON.stringify(one)))
      const isNew = (uniques.get(sameName(local)) ?? []).some((unique) => !before.has(JSON.stringify(unique)))
      if (isNew) found.push({ tbl, reason: "a program added a unique index" })
    }
    return found
  })

/** `lost`: columns that were gone, by table number. */
export const openGaps = (
  tx: Tx,
  found: ReadonlyArray<Found>,
  lost: ReadonlyMap<number, ReadonlyArray<string>>,
  now: number,
): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    if (found.length === 0) return
    yield* tx.run(
      "INSERT INTO sqlite_sequence (name, seq) SELECT 'changes', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'changes')",
    )
    for (const { tbl, reason, anew } of found) {
      const [sequence] = yield* tx.all<{ seq: number }>("SELECT seq FROM sqlite_sequence WHERE name = 'changes'")
      const first = (sequence?.seq ?? 0) + 1
      yield* tx.run("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'changes'", [RESERVED_IDS])
      // A table that had a gap already keeps its first ids: what was captured since then came later than both.
      yield* tx.run(
        `INSERT INTO schoolbus_gap (tbl, reason, lost, first_id, anew, at) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (tbl) DO UPDATE SET reason = excluded.reason, lost = excluded.lost, anew = max(anew, excluded.anew)`,
        [tbl, reason, JSON.stringify(lost.get(tbl) ?? []), first, anew === true ? 1 : 0, now],
      )
    }
  })

/**
 * A program's trigger that is newer than ours wrote on top of writes before those were captured, so the open writes of a row
 * may stand in the wrong order: their first old values are not what head office knows. Ids are made free in front of all
 * open writes, so that what a comparison finds comes before them; each then starts where the one before it ended.
 */
export const openOrderGaps = (tx: Tx, tbls: ReadonlyArray<number>, now: number): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const list = JSON.stringify(tbls)
    const concerned = yield* tx.all<{ tbl: number }>(
      "SELECT DISTINCT tbl FROM changes WHERE batch IS NULL AND op = 'U' AND tbl IN (SELECT value FROM json_each(?))",
      [list],
    )
    const [open] = yield* tx.all<{ first: number | null }>("SELECT min(id) AS first FROM changes WHERE batch IS NULL")
    if (concerned.length === 0 || open?.first == null) return
    // By way of negative numbers: no id meets another on its way.
    yield* tx.run("UPDATE changes SET id = -id - ? WHERE batch IS NULL", [RESERVED_IDS])
    yield* tx.run("UPDATE changes SET id = -id WHERE id < 0")
    yield* tx.run("UPDATE schoolbus_contact SET change = -change - ? WHERE change >= ?", [RESERVED_IDS, open.first])
    yield* tx.run("UPDATE schoolbus_contact SET change = -change WHERE change < 0")
    yield* tx.run("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'changes'", [RESERVED_IDS])
    for (const { tbl } of concerned) {
      yield* tx.run("INSERT INTO schoolbus_gap (tbl, reason, lost, first_id, at) VALUES (?, ?, '[]', ?, ?) ON CONFLICT (tbl) DO NOTHING", [
        tbl,
        "a program's new trigger wrote before writes were captured",
        open.first,
        now,
      ])
    }
  })

/** Open gaps; one of a table that does not fit waits with it. */
export const readGaps = (tx: Tx): Effect.Effect<ReadonlyArray<Gap>, LibsqlError> =>
  Effect.map(
    tx.all<Omit<Gap, "lost"> & { lost: string }>(
      "SELECT g.tbl, t.name, g.reason, g.lost, g.first_id AS firstId, g.anew, g.at FROM schoolbus_gap g JOIN schoolbus_tables t ON t.id = g.tbl WHERE t.name NOT IN (SELECT name FROM schoolbus_unfit) ORDER BY g.tbl",
    ),
    (rows) => rows.map((row) => ({ ...row, lost: JSON.parse(row.lost) as ReadonlyArray<string> })),
  )

export const closeGap = (tx: Tx, tbl: number): Effect.Effect<void, LibsqlError> =>
  Effect.asVoid(tx.run("DELETE FROM schoolbus_gap WHERE tbl = ?", [tbl]))

/** Capture that is off once our own transactions are over, a program has turned off. */
const MOVED = `SELECT schema_version <> (SELECT schema_version FROM pragma_schema_version) OR coalesce((SELECT active FROM schoolbus_deliver), 1) <> 0 AS moved
   FROM schoolbus_state WHERE manifest IS NOT NULL`

/** True when the schema is not the one that was last found sound: to be looked at with `installTables`. */
export const isSchemaMoved = (file: LibsqlFile): Effect.Effect<boolean, LibsqlError> =>
  Effect.map(
    file.read((tx) => tx.all<{ moved: number }>(MOVED)),
    ([row]) => row?.moved === 1,
  )

/** Fails while a table has a gap, or may have one that nobody has looked at: then nothing may be frozen or delivered. */
export const refuseGap = (file: LibsqlFile): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const [any] = yield* file.read((tx) =>
      tx.all<{ moved: number | null; gap: number }>(`SELECT (${MOVED}) AS moved, EXISTS (SELECT 1 FROM schoolbus_gap) AS gap`),
    )
    if (any?.moved !== 1 && any?.gap !== 1) return
    const [gap] = yield* file.read(readGaps)
    if (gap === undefined && any.moved !== 1) return
    const message =
      gap === undefined
        ? "the file's tables were altered by a program; looking at them first"
        : `table ${gap.name}: ${gap.reason}; it is compared with head office first`
    return yield* new LibsqlError({ file: file.path, code: "CAPTURE_GAP", message, sql: "" })
  })

/** Triggers of programs that write to a synced table: what they write while rows are delivered is captured by nobody. */
export interface TriggerFault {
  readonly table: string
  readonly trigger: string
}

const WRITES =
  /\b(?:insert(?:\s+or\s+\w+)?\s+into|replace\s+into|update(?:\s+or\s+\w+)?|delete\s+from)\s+(?:"((?:[^"]|"")+)"|\[([^\]]+)\]|`([^`]+)`|(\w+))/gi

/** Tables that a trigger's body writes to (pure). */
export const writtenBy = (sql: string): ReadonlySet<string> => {
  const body = sql.slice(Math.max(0, sql.search(/\bbegin\b/i)))
  return new Set([...body.matchAll(WRITES)].map(([, a, b, c, d]) => sameName((a?.replaceAll('""', '"') ?? b ?? c ?? d ?? "").trim())))
}

export const readTriggerFaults = (tx: Tx): Effect.Effect<ReadonlyArray<TriggerFault>, LibsqlError> =>
  Effect.gen(function* () {
    const tables = new Map(
      (yield* tx.all<{ name: string; local: string }>("SELECT name, local FROM schoolbus_tables")).map((t) => [sameName(t.local), t.name]),
    )
    const triggers = yield* tx.all<{ name: string; local: string; sql: string }>(
      `SELECT s.name, s.tbl_name AS local, s.sql FROM sqlite_master s WHERE s.type = 'trigger' AND s.name NOT LIKE 'schoolbus\\_%' ESCAPE '\\'`,
    )
    return triggers.flatMap(({ name, local, sql }) => {
      // Only what fires on a synced table fires while rows are delivered, unless it asks whether they are.
      if (!tables.has(sameName(local)) || /schoolbus_deliver/i.test(sql)) return []
      return [...writtenBy(sql)].flatMap((written) => {
        const table = tables.get(written)
        return table === undefined ? [] : [{ table, trigger: name }]
      })
    })
  })
