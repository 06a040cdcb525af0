/** Rows of people, read without trusting what programs wrote; and ids that follow from what they name. */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import { readCell, safely } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"

export interface Owner {
  readonly table: string
  readonly id: string
}

export type PersonRow = ReadonlyMap<string, Cell>

/** By their id as text. Ids are compared by their own type, so that the key's index is used. */
export const readRows = (
  tx: Tx,
  people: Table,
  idColumn: string,
  ids: ReadonlyArray<string>,
): Effect.Effect<ReadonlyMap<string, PersonRow>, LibsqlError> =>
  Effect.gen(function* () {
    const isNumber = ["int", "bigint"].includes(people.columns.find((column) => column.name === idColumn)?.kind ?? "text")
    const list = isNumber ? `[${ids.filter((id) => /^-?\d{1,19}$/.test(id)).join(",")}]` : JSON.stringify(ids)
    const rows = yield* tx.values(
      `SELECT CAST(${ident(idColumn)} AS TEXT), ${people.columns.map((column) => safely(ident(column.name))).join(", ")} FROM ${ident(people.local)}
        WHERE ${ident(idColumn)} IN (SELECT value FROM json_each(?))`,
      [list],
    )
    return new Map(
      rows.map(([id, ...raw]) => {
        const cells = people.columns.flatMap((column, i): ReadonlyArray<readonly [string, Cell]> => {
          const cell = readCell(raw[i] ?? null)
          return typeof cell === "object" && cell !== null && "invalid" in cell ? [] : [[column.name, cell]]
        })
        return [String(id), new Map(cells)]
      }),
    )
  })

/** The same parts make the same id. */
export const uuidOf = (...parts: ReadonlyArray<string>): string => {
  const hex = createHash("sha256").update(JSON.stringify(parts)).digest("hex")
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}
