/**
 * Records of conflicts, brought under the names that their table has now: since they were written, head office may have given
 * its columns others, or one column the name of another. `manifest` says from when on a record's names are right.
 */
import * as Effect from "effect/Effect"
import { namedSince, namesSince, type Table } from "../model/table.ts"
import type { PostgresError, Session } from "../postgres/client.ts"
import { rekeyed } from "./lost.ts"

/** JSON texts: values of one column, or rows; `unique_columns` a list of names. */
export interface Named {
  readonly column_name: string | null
  readonly unique_columns: string | null
  readonly base: string | null
  readonly mine: string | null
  readonly theirs: string | null
  readonly kept: string | null
  readonly undo: string | null
}

type Names = ReadonlyMap<string, string | null>
type Fields = Readonly<Record<string, unknown>>

const isFields = (value: unknown): value is Fields => typeof value === "object" && value !== null && !Array.isArray(value)
const nameNow = (names: Names, name: string): string | null => (names.has(name) ? (names.get(name) ?? null) : name)

/** A row under the names of now, without columns that are gone; a value of one column is no object. */
const rowNow = (names: Names, value: unknown): unknown =>
  isFields(value)
    ? Object.fromEntries(
        Object.entries(value).flatMap(([name, cell]) => {
          const now = nameNow(names, name)
          return now === null ? [] : [[now, cell]]
        }),
      )
    : value

const textNow = (text: string | null, now: (value: unknown) => unknown): string | null =>
  text === null ? null : JSON.stringify(now(JSON.parse(text)))

const partsNow = (names: Names, undo: Fields, parts: Readonly<Record<string, ReadonlyArray<string>>>): Fields =>
  Object.fromEntries(
    Object.entries(parts).flatMap(([part, rows]) => {
      const value = undo[part]
      return isFields(value) ? [[part, { ...value, ...Object.fromEntries(rows.map((name) => [name, rowNow(names, value[name])])) }]] : []
    }),
  )

/** What is kept for taking a decision back: of a value what stood before, of a clash what both rows held and hold. */
const undoNow = (names: Names, undo: unknown): unknown =>
  isFields(undo)
    ? {
        ...undo,
        ...("before" in undo && { before: rowNow(names, undo["before"]) }),
        ...(typeof undo["kept"] === "string" && { kept: textNow(undo["kept"], (value) => rowNow(names, value)) }),
        ...partsNow(names, undo, { own: ["set", "now"], other: ["was", "now"] }),
      }
    : undo

export const underNames = (names: Names, record: Named): Named => {
  const row = (text: string | null) => textNow(text, (value) => rowNow(names, value))
  return {
    column_name: record.column_name === null ? null : nameNow(names, record.column_name),
    unique_columns: textNow(record.unique_columns, (list) => (list as ReadonlyArray<string>).flatMap((name) => nameNow(names, name) ?? [])),
    base: row(record.base),
    mine: row(record.mine),
    theirs: row(record.theirs),
    kept: row(record.kept),
    undo: textNow(record.undo, (value) => undoNow(names, value)),
  }
}

/** Why nothing that the record says can be written any more; null: it can. Then only head office's value is left. */
export const staleOf = (table: Table, record: Pick<Named, "column_name"> & { readonly manifest: string; readonly kind: string }): string | null => {
  const manifest = Number(record.manifest)
  const other = rekeyed(table, manifest)
  if (other !== null) return `rows of ${table.name} have another key at head office since then`
  const { column_name: column, kind } = record
  const isGone = column !== null && kind !== "unique" && nameNow(namesSince(table, manifest), column) === null
  return isGone ? `column ${column} no longer exists at head office` : null
}

/** Writes the record under the names of now where they are others, and answers it so. It must be locked, and not be stale. */
export const bringUp = <Record extends Named & { readonly id: string; readonly manifest: string }>(
  session: Session,
  table: Table,
  record: Record,
): Effect.Effect<Record, PostgresError> =>
  Effect.gen(function* () {
    const names = namesSince(table, Number(record.manifest))
    if (names.size === 0) return record
    const now = underNames(names, record)
    const manifest = String(namedSince(table))
    yield* session.execute(
      `UPDATE schoolbus.conflicts SET column_name = $2, unique_columns = $3, base = $4, mine = $5, theirs = $6, kept = $7, undo = $8, manifest = $9::text::bigint
        WHERE id = $1::text::uuid`,
      [record.id, now.column_name, now.unique_columns, now.base, now.mine, now.theirs, now.kept, now.undo, manifest],
    )
    return { ...record, ...now, manifest }
  })
