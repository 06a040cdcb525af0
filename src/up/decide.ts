/**
 * A person's decision about a recorded conflict: the row and the record change in one transaction, and both come down to
 * the school like any row. An open one takes the school's or head office's value, or a third; a decided one can be turned
 * the other way, as long as nobody has written the row since.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Table } from "../model/table.ts"
import { textToToken, type Wire, wireToText } from "../model/value.ts"
import { ident, type PostgresError, type PostgresPool, qualified, type Session } from "../postgres/client.ts"
import { sameValue } from "./resolve.ts"

export type Choice = { readonly keep: "school" } | { readonly keep: "vps" } | { readonly keep: "value"; readonly value: unknown }

/** `not_found`; `decided`: already so; `not_possible`: Postgres refuses, or the row has changed since. */
export class DecideRefused extends Data.TaggedError("DecideRefused")<{ readonly code: "not_found" | "decided" | "not_possible"; readonly message: string }> {}

type Values = Readonly<Record<string, Wire>>

interface Row {
  readonly table_name: string
  readonly row_key: string
  readonly column_name: string | null
  readonly mine: string | null
  readonly theirs: string | null
  readonly kept: string | null
  readonly winner: string
  readonly status: string
}

const columnOf = (table: Table, name: string) => table.columns.find((column) => column.name === name)
const cast = (table: Table, name: string, position: number): string => `$${position}::text::${columnOf(table, name)?.type ?? "text"}`
const text = (table: Table, name: string, value: Wire): string | null => wireToText(columnOf(table, name)?.kind ?? "text", value)

const keyWhere = (table: Table, from: number): string => table.key.map((name, i) => `${ident(name)} = ${cast(table, name, from + i)}`).join(" AND ")
const keyParams = (table: Table, key: ReadonlyArray<Wire>): ReadonlyArray<string | null> => table.key.map((name, i) => text(table, name, key[i] ?? null))

const readRow = (session: Session, table: Table, key: ReadonlyArray<Wire>): Effect.Effect<Values | null, PostgresError> =>
  Effect.map(
    session.texts(`SELECT ${table.columns.map((column) => ident(column.name)).join(", ")} FROM ${qualified(table.name)} WHERE ${keyWhere(table, 1)} FOR UPDATE`, keyParams(table, key)),
    ([cells]) =>
      cells === undefined ? null : Object.fromEntries(table.columns.map((column, i) => [column.name, JSON.parse(textToToken(column.kind, cells[i] ?? null)) as Wire])),
  )

const setColumns = (session: Session, table: Table, key: ReadonlyArray<Wire>, set: Values): Effect.Effect<unknown, PostgresError> => {
  const names = Object.keys(set).filter((name) => columnOf(table, name)?.generated === false)
  if (names.length === 0) return Effect.void
  return session.execute(
    `UPDATE ${qualified(table.name)} SET ${names.map((name, i) => `${ident(name)} = ${cast(table, name, i + 1)}`).join(", ")} WHERE ${keyWhere(table, names.length + 1)}`,
    [...names.map((name) => text(table, name, set[name] ?? null)), ...keyParams(table, key)],
  )
}

const writeRow = (session: Session, table: Table, key: ReadonlyArray<Wire>, row: Values | null, present: boolean): Effect.Effect<unknown, PostgresError> => {
  if (row === null) return session.execute(`DELETE FROM ${qualified(table.name)} WHERE ${keyWhere(table, 1)}`, keyParams(table, key))
  if (present) return setColumns(session, table, key, row)
  const names = Object.keys(row).filter((name) => columnOf(table, name)?.generated === false)
  return session.execute(
    `INSERT INTO ${qualified(table.name)} (${names.map(ident).join(", ")}) OVERRIDING SYSTEM VALUE VALUES (${names.map((name, i) => cast(table, name, i + 1)).join(", ")})`,
    names.map((name) => text(table, name, row[name] ?? null)),
  )
}

export const resolveConflict = (
  pg: PostgresPool,
  tables: ReadonlyMap<string, Table>,
  id: string,
  choice: Choice,
  by: string,
): Effect.Effect<void, DecideRefused | PostgresError> =>
  pg
    .tx((session) =>
      Effect.gen(function* () {
        const refuse = (code: DecideRefused["code"], message: string) => new DecideRefused({ code, message })
        const [row] = yield* session.query<Row>(
          "SELECT table_name, row_key, column_name, mine, theirs, kept, winner, status FROM schoolbus.conflicts WHERE id::text = $1 FOR UPDATE",
          [id],
        )
        if (row === undefined) return yield* refuse("not_found", `no conflict ${id}; see: schoolbus conflicts list`)
        const table = tables.get(row.table_name)
        if (table === undefined) return yield* refuse("not_possible", `table ${row.table_name} is no longer synced`)
        const isOpen = row.status === "open"
        if (choice.keep === row.winner) return yield* refuse("decided", `the ${choice.keep === "vps" ? "head office" : "school"} value stands already`)
        const key = JSON.parse(row.row_key) as ReadonlyArray<Wire>
        const side = (json: string | null) => JSON.parse(json ?? "null") as Wire & Values
        const wanted = choice.keep === "value" ? (choice.value as Wire & Values) : side(choice.keep === "school" ? row.mine : row.theirs)
        const current = yield* readRow(session, table, key)
        const { column_name: name } = row
        // An open one stands at head office as it is; everything else is written.
        const writes = !(isOpen && choice.keep === "vps")
        if (writes && name !== null) {
          if (current === null) return yield* refuse("not_possible", "the row no longer exists at head office")
          if (!isOpen && !sameValue(columnOf(table, name)?.kind ?? "text", current[name] ?? null, side(row.kept))) {
            return yield* refuse("not_possible", `${name} has been written again since (now ${JSON.stringify(current[name])}); change it by hand`)
          }
          yield* setColumns(session, table, key, { [name]: wanted })
        } else if (writes) yield* writeRow(session, table, key, wanted as Values | null, current !== null)
        const kept = isOpen && choice.keep === "vps" ? (name === null ? current : (current?.[name] ?? null)) : wanted
        yield* session.execute(
          `UPDATE schoolbus.conflicts SET status = 'resolved', winner = $2, kept = $3, decided_by = $4, decided_at = now() WHERE id::text = $1`,
          [id, choice.keep === "vps" ? "vps" : "school", JSON.stringify(kept), by],
        )
      }),
    )
    .pipe(
      Effect.mapError((error) =>
        error._tag === "PostgresError" && /^(22|23|42)/.test(error.sqlstate)
          ? new DecideRefused({ code: "not_possible", message: `Postgres refuses: ${error.message}` })
          : error,
      ),
    )
