/** Rows of people, read without trusting what programs wrote; and ids that follow from what they name. */
import { hash } from "node:crypto"
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

/** What follows from the parts of ids is remembered: the same person comes to the same terminal every day. */
const MAX_REMEMBERED = 50_000
const remembered = new Map<string, string>()
const restOf = (parts: ReadonlyArray<string>): string => {
  const text = parts.join("\0")
  let rest = remembered.get(text)
  if (rest === undefined) {
    const hex = hash("sha256", JSON.stringify(parts), "hex")
    rest = `-8${hex.slice(0, 3)}-8${hex.slice(3, 6)}-${hex.slice(6, 18)}`
    if (remembered.size >= MAX_REMEMBERED) remembered.clear()
    remembered.set(text, rest)
  }
  return rest
}

/**
 * The same moment (ms since 1970) and the same parts make the same id. It begins with the moment: what happens after each other
 * stands side by side in the indexes of both databases, so a body of punches touches a few pages of the file and not one for each.
 */
export const uuidOf = (at: number, ...parts: ReadonlyArray<string>): string => {
  const time = Math.max(0, at).toString(16).padStart(12, "0")
  return `${time.slice(0, 8)}-${time.slice(8)}${restOf(parts)}`
}

/** What of such an id is its moment, and that moment. */
export const TIME_CHARS = 13
export const timeOfUuid = (id: string): number => Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16)
