/** Many rows by one prepared statement, in the worker: what a constraint refuses is told by its place, the other rows stand. */
import { type Cell, type Kind, type Wire, wireToCell } from "../model/value.ts"
import { faultOf } from "./fault.ts"
import type { Packed, PackedWires, RowFailure } from "./messages.ts"

type Prepare = (sql: string) => { readonly run: (args: Array<unknown>) => unknown }

/** A constraint refuses rows; everything else fails the transaction. */
export const isRefusal = (code: string): boolean => code.startsWith("SQLITE_CONSTRAINT") || code === "SQLITE_MISMATCH"

export const runRows = (prepare: Prepare, { sql, width, cells, integers }: Packed & { readonly sql: string }): ReadonlyArray<RowFailure> => {
  const statement = prepare(sql)
  const failures: Array<RowFailure> = []
  for (let index = 0; index * width < cells.length; index++) {
    const row: Array<unknown> = new Array(width)
    for (let i = 0; i < width; i++) {
      const cell = cells[index * width + i]
      row[i] = integers[index * width + i] === 1 ? BigInt(cell as number) : cell
    }
    try {
      statement.run(row)
    } catch (error) {
      const { code, message } = faultOf(error)
      if (!isRefusal(code)) throw error
      failures.push({ index, code, message })
    }
  }
  return failures
}

export const writeWires = (
  prepare: Prepare,
  { sql, kinds, json, wideSql, wide }: PackedWires & { readonly sql: string },
): ReadonlyArray<RowFailure> => {
  const rows = JSON.parse(json) as ReadonlyArray<ReadonlyArray<Wire>>
  const failures: Array<RowFailure> = []
  const cellsOf = (from: number, to: number): Array<Cell> => {
    const cells: Array<Cell> = []
    for (let index = from; index < to; index++)
      for (let i = 0; i < kinds.length; i++) cells.push(wireToCell(kinds[i] as Kind, rows[index]?.[i] ?? null))
    return cells
  }
  const refusal = (index: number, cells: Array<Cell>): RowFailure | null => {
    try {
      prepare(index < 0 ? wideSql : sql).run(cells)
      return null
    } catch (error) {
      const { code, message } = faultOf(error)
      if (!isRefusal(code)) throw error
      return { index, code, message }
    }
  }
  for (let from = 0; from < rows.length; from += wide) {
    const to = Math.min(rows.length, from + wide)
    // A statement that is refused has written none of its rows.
    if (to - from === wide && wide > 1 && refusal(-1, cellsOf(from, to)) === null) continue
    for (let index = from; index < to; index++) {
      const refused = refusal(index, cellsOf(index, index + 1))
      if (refused !== null) failures.push(refused)
    }
  }
  return failures
}
