/** Single rows of head office, named by wire keys: read under lock, spelled as Postgres prints them, written. */
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { type Wire, wireToText } from "../model/value.ts"
import { asOffice, ident, type PostgresError, qualified, type Session } from "../postgres/client.ts"
import { canonicalise, textToWire } from "./canonical.ts"
import { leftOut } from "./left-out.ts"
import { asStored, equals } from "./lists.ts"
import type { Row } from "./resolve.ts"
import type { Shape } from "./shape.ts"

/** A table and its shape, and a row's key. */
export interface Place {
  readonly table: Table
  readonly shape: Shape
  readonly key: ReadonlyArray<Wire>
}

export const columnOf = (table: Table, name: string) => table.columns.find((column) => column.name === name)
const text = (table: Table, name: string, value: Wire): string | null => wireToText(columnOf(table, name)?.kind ?? "text", value)
const keyWhere = ({ table, shape }: Place, from: number): string =>
  table.key.map((name, i) => equals(shape.columns.get(name), ident(name), `$${from + i}::pg_catalog.text`)).join(" AND ")
const keyParams = ({ table, key }: Place): ReadonlyArray<string | null> => table.key.map((name, i) => text(table, name, key[i] ?? null))

export const readRow = (session: Session, place: Place): Effect.Effect<Row | null, PostgresError> => {
  const columns = place.table.columns.filter((column) => place.shape.columns.has(column.name))
  const lock = place.shape.can.update ? " FOR UPDATE" : ""
  return Effect.map(
    session.texts(
      `SELECT ${columns.map((column) => ident(column.name)).join(", ")} FROM ${qualified(place.table.name)} WHERE ${keyWhere(place, 1)}${lock}`,
      keyParams(place),
    ),
    ([cells]) =>
      cells === undefined ? null : Object.fromEntries(columns.map((column, i) => [column.name, textToWire(column.kind, cells[i] ?? null)])),
  )
}

/** Commit time of the row as it stands, as Postgres prints it; null where that is not kept. */
export const writtenAt = (session: Session, place: Place): Effect.Effect<string | null, PostgresError> =>
  Effect.gen(function* () {
    const [setting] = yield* session.query<{ on: string }>("SELECT current_setting('track_commit_timestamp') AS on")
    if (setting?.on !== "on") return null
    const [row] = yield* session.texts(
      `SELECT pg_xact_commit_timestamp(xmin) FROM ${qualified(place.table.name)} WHERE ${keyWhere(place, 1)}`,
      keyParams(place),
    )
    return row?.[0] ?? null
  })

/** The row as Postgres prints it, without what it computes itself; or the reason why a column cannot hold a value exactly. */
export const spellRow = (
  session: Session,
  { table, shape }: Pick<Place, "table" | "shape">,
  row: Row,
): Effect.Effect<{ readonly ok: Row } | { readonly refused: string }, PostgresError> =>
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
      if ("refused" in canonical) return { refused: `column ${cell.name}: ${canonical.refused}` }
      spelled[cell.name] = textToWire(columnOf(table, cell.name)?.kind ?? "text", canonical.text)
    }
    return { ok: spelled }
  })

/** `row`: the columns to be written; null: the row is to go. Fails where Postgres leaves it out without a word. */
export const writeRow = (session: Session, place: Place, row: Row | null, isPresent: boolean): Effect.Effect<void, PostgresError> => {
  const { table, shape } = place
  const on = qualified(table.name)
  const write = (kind: "insert" | "update" | "delete", sql: string, params: ReadonlyArray<string | null>) =>
    Effect.flatMap(asOffice(session, session.execute(sql, params)), (rows) =>
      rows > 0 ? Effect.void : Effect.flatMap(leftOut(session, { table, shape, kind }), (error) => Effect.fail(error)),
    )
  if (row === null) return isPresent ? write("delete", `DELETE FROM ${on} WHERE ${keyWhere(place, 1)}`, keyParams(place)) : Effect.void
  const names = Object.keys(row).filter((name) => shape.columns.get(name)?.generated === false)
  const values = names.map((name) => text(table, name, row[name] ?? null))
  const casts = names.map((name, i) => asStored(shape.columns.get(name), `$${i + 1}::pg_catalog.text`))
  if (names.length === 0) return Effect.void
  if (!isPresent)
    return write("insert", `INSERT INTO ${on} (${names.map(ident).join(", ")}) OVERRIDING SYSTEM VALUE VALUES (${casts.join(", ")})`, values)
  return write(
    "update",
    `UPDATE ${on} SET ${names.map((name, i) => `${ident(name)} = ${casts[i]}`).join(", ")} WHERE ${keyWhere(place, names.length + 1)}`,
    [...values, ...keyParams(place)],
  )
}

/** Whether what was left there still stands: the columns of `kept`, or no row. */
export const isAsLeft = (kept: Row | null, current: Row | null, shape: Shape): boolean =>
  kept === null || current === null
    ? kept === current
    : Object.entries(kept).every(([name, value]) => shape.columns.get(name)?.generated !== false || value === (current[name] ?? null))
