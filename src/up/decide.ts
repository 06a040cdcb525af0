/**
 * A person's decision about a recorded conflict: the row and the record change in one transaction, and both come down to
 * the school like any row. An open one takes the school's or head office's value, or a third; a decided one can be turned
 * the other way, as long as nobody has written there since.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, type PostgresPool, qualified, type Session } from "../postgres/client.ts"
import { canonicalise, textToWire } from "./canonical.ts"
import { setTimeouts } from "./carry-out.ts"
import type { Row } from "./resolve.ts"
import { readShapes, type Shape } from "./shape.ts"

export type Choice = { readonly keep: "school" } | { readonly keep: "vps" } | { readonly keep: "value"; readonly value: unknown }

/** `not_found`; `decided`: already so; `not_possible`: Postgres refuses, or the row has changed since. */
export class DecideRefused extends Data.TaggedError("DecideRefused")<{
  readonly code: "not_found" | "decided" | "not_possible"
  readonly message: string
}> {}

const refuse = (code: DecideRefused["code"], message: string): DecideRefused => new DecideRefused({ code, message })

interface Conflict {
  readonly table_name: string
  readonly row_key: string
  readonly column_name: string | null
  readonly mine: string | null
  readonly theirs: string | null
  readonly kept: string | null
  readonly winner: string
  readonly status: string
}

/** A table and its shape, for single rows named by wire keys. */
interface Place {
  readonly table: Table
  readonly shape: Shape
  readonly key: ReadonlyArray<Wire>
}

const columnOf = (table: Table, name: string) => table.columns.find((column) => column.name === name)
const text = (table: Table, name: string, value: Wire): string | null => wireToText(columnOf(table, name)?.kind ?? "text", value)
const keyWhere = ({ table, shape }: Place, from: number): string =>
  table.key.map((name, i) => `${ident(name)} = $${from + i}::text::${shape.columns.get(name)?.base ?? "text"}`).join(" AND ")
const keyParams = ({ table, key }: Place): ReadonlyArray<string | null> => table.key.map((name, i) => text(table, name, key[i] ?? null))

const readRow = (session: Session, place: Place): Effect.Effect<Row | null, PostgresError> => {
  const columns = place.table.columns.filter((column) => place.shape.columns.has(column.name))
  return Effect.map(
    session.texts(
      `SELECT ${columns.map((column) => ident(column.name)).join(", ")} FROM ${qualified(place.table.name)} WHERE ${keyWhere(place, 1)} FOR UPDATE`,
      keyParams(place),
    ),
    ([cells]) =>
      cells === undefined ? null : Object.fromEntries(columns.map((column, i) => [column.name, textToWire(column.kind, cells[i] ?? null)])),
  )
}

/** The row as Postgres prints it, without what it computes itself; a value that a column cannot hold exactly is refused. */
const spell = (session: Session, { table, shape }: Place, row: Row): Effect.Effect<Row, DecideRefused | PostgresError> =>
  Effect.gen(function* () {
    const cells = Object.entries(row).flatMap(([name, value]) => {
      const column = shape.columns.get(name)
      return column === undefined || column.generated ? [] : [{ name, column, text: text(table, name, value) }]
    })
    const found = yield* canonicalise(
      session,
      cells.map((cell) => ({ column: cell.column, texts: cell.text === null ? [] : [cell.text] })),
    )
    const spelled: Record<string, Wire> = {}
    for (const [i, cell] of cells.entries()) {
      const canonical = cell.text === null ? { text: null } : (found[i]?.get(cell.text) ?? { text: cell.text })
      if ("refused" in canonical) return yield* refuse("not_possible", `column ${cell.name}: ${canonical.refused}`)
      spelled[cell.name] = textToWire(columnOf(table, cell.name)?.kind ?? "text", canonical.text)
    }
    return spelled
  })

const writeRow = (session: Session, place: Place, row: Row | null, isPresent: boolean): Effect.Effect<unknown, PostgresError> => {
  const { table, shape } = place
  const on = qualified(table.name)
  if (row === null) return isPresent ? session.execute(`DELETE FROM ${on} WHERE ${keyWhere(place, 1)}`, keyParams(place)) : Effect.void
  const names = Object.keys(row)
  const values = names.map((name) => text(table, name, row[name] ?? null))
  const casts = names.map((name, i) => `$${i + 1}::text::${shape.columns.get(name)?.type ?? "text"}`)
  if (names.length === 0) return Effect.void
  if (!isPresent)
    return session.execute(`INSERT INTO ${on} (${names.map(ident).join(", ")}) OVERRIDING SYSTEM VALUE VALUES (${casts.join(", ")})`, values)
  return session.execute(
    `UPDATE ${on} SET ${names.map((name, i) => `${ident(name)} = ${casts[i]}`).join(", ")} WHERE ${keyWhere(place, names.length + 1)}`,
    [...values, ...keyParams(place)],
  )
}

/** Where the decision left it: the columns of `kept` still hold what it says, or the row is still not there. */
const isAsKept = (kept: Row | null, current: Row | null, shape: Shape): boolean =>
  kept === null || current === null
    ? kept === current
    : Object.entries(kept).every(([name, value]) => shape.columns.get(name)?.generated !== false || value === (current[name] ?? null))

const parse = (json: string | null): Wire & Row => JSON.parse(json ?? "null")

const isRow = (value: unknown): value is Row =>
  typeof value === "object" &&
  value !== null &&
  !Array.isArray(value) &&
  Object.values(value).every((cell) => cell === null || typeof cell !== "object")

const isWire = (value: unknown): value is Wire => value === null || ["string", "number", "boolean"].includes(typeof value)

/** The conflict's row as it shall be: the named column or the whole row; null = no row. */
const wantedOf = (conflict: Conflict, choice: Choice): { readonly row: Row | null } | null => {
  const { column_name: column } = conflict
  const value: unknown = choice.keep === "value" ? choice.value : parse(choice.keep === "school" ? conflict.mine : conflict.theirs)
  if (column !== null) return isWire(value) ? { row: { [column]: value } } : null
  return value === null || isRow(value) ? { row: value } : null
}

const decide = (session: Session, tables: ReadonlyMap<string, Table>, id: string, choice: Choice, by: string) =>
  Effect.gen(function* () {
    yield* setTimeouts(session)
    yield* session.execute("SET CONSTRAINTS ALL IMMEDIATE")
    const [conflict] = yield* session.query<Conflict>(
      "SELECT table_name, row_key, column_name, mine, theirs, kept, winner, status FROM schoolbus.conflicts WHERE id::text = $1 FOR UPDATE",
      [id.toLowerCase()],
    )
    if (conflict === undefined) return yield* refuse("not_found", `no conflict ${id}; see: schoolbus conflicts list`)
    const { column_name: column } = conflict
    const table = tables.get(conflict.table_name)
    const shape = (yield* readShapes(session, [conflict.table_name])).get(conflict.table_name)
    if (table === undefined || shape === undefined) return yield* refuse("not_possible", `table ${conflict.table_name} is no longer synced`)
    const isOpen = conflict.status === "open"
    if (choice.keep === conflict.winner)
      return yield* refuse("decided", `the value of ${choice.keep === "vps" ? "head office" : "the school"} stands already`)
    const place: Place = { table, shape, key: parse(conflict.row_key) as unknown as ReadonlyArray<Wire> }
    const current = yield* readRow(session, place)
    const present = column === null ? current : current === null ? null : { [column]: current[column] ?? null }

    // What is open stands at head office as it is; everything else is written.
    if (isOpen && choice.keep === "vps") return yield* close(session, id, "vps", column, present, by)
    if (column !== null && current === null) return yield* refuse("not_possible", "the row no longer exists at head office")
    if (column !== null && !shape.columns.has(column)) return yield* refuse("not_possible", `column ${column} no longer exists at head office`)
    const kept = column === null ? parse(conflict.kept) : { [column]: parse(conflict.kept) }
    if (!isOpen && !isAsKept(kept, column === null ? current : present, shape)) {
      return yield* refuse(
        "not_possible",
        `${column ?? "the row"} has been written again since (now ${JSON.stringify(column === null ? present : present?.[column])}); change it by hand`,
      )
    }
    const wanted = wantedOf(conflict, choice)
    if (wanted === null)
      return yield* refuse(
        "not_possible",
        column === null ? "the value must be an object of columns, or null for no row" : "the value must be a text, a number, true, false or null",
      )
    const row = wanted.row === null ? null : yield* spell(session, place, wanted.row)
    yield* writeRow(session, place, row, current !== null)
    yield* close(session, id, choice.keep === "vps" ? "vps" : "school", column, row, by)
  })

const close = (
  session: Session,
  id: string,
  winner: "school" | "vps",
  column: string | null,
  kept: Row | null,
  by: string,
): Effect.Effect<unknown, PostgresError> =>
  session.execute(
    "UPDATE schoolbus.conflicts SET status = 'resolved', winner = $2, kept = $3, decided_by = $4, decided_at = now() WHERE id::text = $1",
    [id.toLowerCase(), winner, JSON.stringify(column === null ? kept : (kept?.[column] ?? null)), by],
  )

/** `id`: of the record. A decision about an open conflict ends its hold at the school once the record has come down. */
export const resolveConflict = (
  pg: PostgresPool,
  tables: ReadonlyMap<string, Table>,
  id: string,
  choice: Choice,
  by: string,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  pg
    .tx((session) => decide(session, tables, id, choice, by))
    .pipe(
      Effect.asVoid,
      Effect.mapError((error) =>
        error._tag === "PostgresError" && /^(22|23|42|P0)/.test(error.sqlstate)
          ? refuse("not_possible", `Postgres refuses: ${error.message}`)
          : error,
      ),
    )
