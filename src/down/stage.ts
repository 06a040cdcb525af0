/**
 * The lines of a cut that is longer than one page, durable in the order in which they came. A line leaves in the
 * transaction that applies it; how far each class was received stays until the cut is complete.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import { rowsLine } from "../link/frame.ts"
import type { Header, RowsLine, Staged } from "../link/protocol.ts"
import type { Table } from "../model/table.ts"
import { CONFLICTS, LEDGER, QUARANTINE } from "./delivery.ts"

/** Rows of our own tables that one transaction removes. */
const REMOVE_ROWS = 20_000
const REMOVE_LINES = 200
const READ_LINES = 64

/** Characters of a line's rows, without what stands before them. */
const rowsLength = ([, , , , , text]: RowsLine): number => text.length - text.indexOf('"],[') - 4

export const rowsOf = (lines: ReadonlyArray<RowsLine>): number => lines.reduce((n, [, , , , rows]) => n + rows, 0)

export const stageLines = (tx: Tx, header: Header, lines: ReadonlyArray<RowsLine>): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* tx.many("INSERT INTO schoolbus_stage (cls, seq, tbl, rows, line) VALUES (?, ?, ?, ?, ?)", [
      [null, null, null, 0n, JSON.stringify(header)],
      ...lines.map(([, cls, seq, table, rows, text]) => [BigInt(cls), BigInt(seq), table, BigInt(rows), text]),
    ])
    yield* tx.many(
      `INSERT INTO schoolbus_staged (cls, seq, rows, bytes) VALUES (?, ?, ?, ?) ON CONFLICT (cls) DO UPDATE SET
         seq = max(seq, excluded.seq), rows = rows + excluded.rows, bytes = bytes + excluded.bytes`,
      lines.map((line) => [BigInt(line[1]), BigInt(line[2]), BigInt(line[4]), BigInt(rowsLength(line))]),
    )
  })

/** The headers of the first and the newest page; null = nothing is staged. */
export const stagedHeaders = (tx: Tx): Effect.Effect<{ readonly first: Header; readonly newest: Header } | null, LibsqlError> =>
  Effect.map(
    tx.all<{ line: string }>(
      `SELECT line FROM (SELECT line, n FROM schoolbus_stage WHERE tbl IS NULL ORDER BY n LIMIT 1)
       UNION ALL SELECT line FROM (SELECT line, n FROM schoolbus_stage WHERE tbl IS NULL ORDER BY n DESC LIMIT 1)`,
    ),
    ([first, newest]) =>
      first === undefined || newest === undefined ? null : { first: JSON.parse(first.line) as Header, newest: JSON.parse(newest.line) as Header },
  )

/** Where a pull goes on: the newest page's head, and of each class the last seq that came. */
export const stagedPosition = (tx: Tx): Effect.Effect<Staged | null, LibsqlError> =>
  Effect.gen(function* () {
    const headers = yield* stagedHeaders(tx)
    if (headers === null) return null
    const classes = yield* tx.all<{ cls: number; seq: number }>("SELECT cls, seq FROM schoolbus_staged")
    return {
      head: headers.newest.head,
      headCut: headers.newest.headCut,
      after: Object.fromEntries(classes.map(({ cls, seq }) => [String(cls), seq])),
    }
  })

export interface Received {
  readonly rows: number
  /** Of the rows, as text. */
  readonly bytes: number
}

/** What came of the cut under way, over all connections and restarts. */
export const receivedOf = (tx: Tx): Effect.Effect<Received, LibsqlError> =>
  Effect.map(
    tx.all<Received>("SELECT coalesce(sum(rows), 0) AS rows, coalesce(sum(bytes), 0) AS bytes FROM schoolbus_staged"),
    ([row]) => row ?? { rows: 0, bytes: 0 },
  )

/** The class that is being received: those above it are here. null = nothing is staged. */
export const classUnderWay = (tx: Tx): Effect.Effect<number | null, LibsqlError> =>
  Effect.map(tx.all<{ cls: number | null }>("SELECT min(cls) AS cls FROM schoolbus_staged"), ([row]) => row?.cls ?? null)

/** No hub knows a cut of this name. */
const TORN = "torn"

/**
 * Throws the staging away: first what makes the lines count, then the lines. When rows of it show already, this is no state
 * of head office any more: the cursor gets a name that no hub knows, and what is here is compared with what is there.
 */
export const discardStage = (db: LibsqlFile): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    yield* db.write((tx) =>
      Effect.gen(function* () {
        yield* tx.run("DELETE FROM schoolbus_staged")
        yield* tx.run("DELETE FROM schoolbus_stage WHERE tbl IS NULL")
        yield* tx.run("UPDATE schoolbus_state SET cut = CASE seq WHEN 0 THEN cut ELSE ? END, applying = NULL WHERE applying IS NOT NULL", [TORN])
      }),
    )
    while (
      (yield* db.write((tx) => tx.run("DELETE FROM schoolbus_stage WHERE n IN (SELECT n FROM schoolbus_stage LIMIT ?)", [REMOVE_LINES]))) ===
      REMOVE_LINES
    );
  })

/** Empties the list of met keys; only while no sweep needs it. */
export const discardMet = (db: LibsqlFile): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    const remove = (tx: Tx) => tx.run("DELETE FROM schoolbus_met WHERE (tbl, key) IN (SELECT tbl, key FROM schoolbus_met LIMIT ?)", [REMOVE_ROWS])
    const [any] = yield* db.read((tx) => tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_met) AS n"))
    if (any?.n === 1) while ((yield* db.write(remove)) === REMOVE_ROWS);
  })

/**
 * Tables in the order in which their lines are applied: by class, within it parents before the tables that refer to them
 * (a cycle keeps its given order), records last. All lines of a table go in the order they came, so the newest state wins.
 * `above` a class: only the tables above it, without records; 0 = all.
 */
export const applyOrder = (
  tables: ReadonlyArray<Table>,
  classOf: Readonly<Record<Table["priority"], number>>,
  above: number,
): ReadonlyArray<string> => {
  const byName = new Map(tables.map((table) => [table.name, table]))
  const order = new Set<Table>()
  const visit = (table: Table, path: ReadonlySet<string>): void => {
    if (order.has(table) || path.has(table.name)) return
    for (const reference of table.references) {
      const parent = byName.get(reference.table)
      if (parent !== undefined) visit(parent, new Set([...path, table.name]))
    }
    order.add(table)
  }
  for (const table of tables) visit(table, new Set())
  const last = [QUARANTINE, CONFLICTS, LEDGER]
  const ranked = [...order]
    .filter((table) => !last.includes(table.name) && classOf[table.priority] > above)
    .toSorted((a, b) => classOf[b.priority] - classOf[a.priority])
  return [...ranked.map((table) => table.name), ...(above > 0 ? [] : [QUARANTINE, CONFLICTS])]
}

/** A line that waits; its text stays in the file. */
export interface StagedLine {
  readonly n: number
  readonly table: string
  readonly rows: number
}

/** The next lines to apply, up to about so many rows and bytes; of at least one line. */
export const nextLines = (tx: Tx, order: ReadonlyArray<string>, rows: number, bytes: number): Effect.Effect<ReadonlyArray<StagedLine>, LibsqlError> =>
  Effect.gen(function* () {
    const lines: Array<StagedLine> = []
    let left = rows
    let room = bytes
    for (const table of order) {
      for (let after = -1; left > 0 && room > 0; ) {
        const some = yield* tx.all<{ n: number; rows: number; bytes: number }>(
          `SELECT n, rows, octet_length(line) AS bytes FROM schoolbus_stage WHERE tbl = ? AND n > ? ORDER BY n LIMIT ${READ_LINES}`,
          [table, after],
        )
        for (const line of some) {
          if (left <= 0 || room <= 0) break
          lines.push({ n: line.n, table, rows: line.rows })
          left -= line.rows
          room -= line.bytes
          after = line.n
        }
        if (some.length < READ_LINES) break
      }
    }
    return lines
  })

const linesOf = (rows: ReadonlyArray<{ readonly line: string }>): ReadonlyArray<RowsLine> =>
  rows.map(({ line }) => rowsLine(line)).filter((line) => line !== null)

/** Reads the text of one line. */
export const LINE_TEXT = "SELECT line FROM schoolbus_stage WHERE n = ?"

export const readLines = (tx: Tx, lines: ReadonlyArray<StagedLine>): Effect.Effect<ReadonlyArray<RowsLine>, LibsqlError> =>
  Effect.map(
    tx.all<{ line: string }>("SELECT line FROM json_each(?) j JOIN schoolbus_stage s ON s.n = j.value ORDER BY j.key", [
      JSON.stringify(lines.map(({ n }) => n)),
    ]),
    linesOf,
  )

export const removeLines = (tx: Tx, lines: ReadonlyArray<StagedLine>): Effect.Effect<void, LibsqlError> =>
  Effect.asVoid(
    tx.many(
      "DELETE FROM schoolbus_stage WHERE n = ?",
      lines.map(({ n }) => [BigInt(n)]),
    ),
  )

export const ledgerLines = (tx: Tx): Effect.Effect<ReadonlyArray<RowsLine>, LibsqlError> =>
  Effect.map(tx.all<{ line: string }>("SELECT line FROM schoolbus_stage WHERE tbl = ? ORDER BY n", [LEDGER]), linesOf)
