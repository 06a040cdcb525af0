/** One change on its way through carry-out.ts: what is known of it so far, what it meets, and what becomes of it. */
import type { KeyRange } from "../model/key-range.ts"
import type { Table } from "../model/table.ts"
import { isRefused, type Wire } from "../model/value.ts"
import { type Leaving, type Pointing, type Refusal, textsOf } from "./authorise.ts"
import { currentKey, rowId, type RowChange, type Values } from "./coalesce.ts"
import type { Decision, Row } from "./resolve.ts"
import type { Shape } from "./shape.ts"
import type { Tables } from "./tables.ts"

/** What all changes of one batch stand on. */
export interface Ground {
  readonly school: string
  /** Under which manifest the changes were frozen; absent: under the present one. */
  readonly manifest?: number
  readonly isOlder?: boolean
  readonly tables: ReadonlyMap<string, Table>
  readonly had: Tables["Service"]["had"]
  readonly times?: Tables["Service"]["times"]
  /** The bigint keys that the school may give out; absent: a person has looked at the change. */
  readonly keys?: KeyRange
  /** What Postgres made of values that this file sent and may not have seen come down yet, by `rowId`, then by column. */
  readonly stored: ReadonlyMap<string, ReadonlyMap<string, ReadonlyArray<{ readonly sent: Wire; readonly stored: Wire }>>>
  /** Bases of columns that wait for a person, by `rowId`: an open conflict is measured from where it began. */
  readonly openBases: ReadonlyMap<string, ReadonlyMap<string, Wire>>
}

/** What became of one change. */
export interface Outcome {
  readonly row: RowChange
  /** null when the row could not be written: then `refusal` says why. */
  readonly decision: Decision | null
  readonly refusal: Refusal | null
  /** Of a refused row: as it would be. */
  readonly wanted: Row | null
  readonly shape: Shape | null
  /** The row in Postgres after the batch, as far as the decision tells; null = no row. */
  readonly after: Row | null
  /** The row's key after the batch, at the school when Postgres has no such row. */
  readonly keyAfter: ReadonlyArray<Wire>
  /** Columns where Postgres stored another value than was sent. */
  readonly altered: ReadonlyArray<{ readonly column: string; readonly sent: Wire; readonly stored: Wire }>
  /** What it says of columns that head office no longer has. */
  readonly lost?: Values
}

export interface Work extends Pointing, Leaving {
  readonly change: RowChange
  readonly shape: Shape
  /** Values as Postgres prints them. */
  key: ReadonlyArray<string | null>
  readonly id: string
  base: Row
  mine: Row
  respelled: ReadonlySet<string>
  theirs: Row | null
  theirsAt: number | null
  xmin: string | null
  isMineGreater: ReadonlySet<string>
  decision: Decision | null
  refusal: Refusal | null
  row: Row
  written: ReadonlySet<string>
  isDelete: boolean
  isInsert: boolean
  /** Head office's row belongs to the school. */
  isInside: boolean
}

/** The same values where none is left out, which is nearly always. */
const withoutThose = <V, Kept extends V>(
  values: Readonly<Record<string, V>>,
  isKept: (name: string, value: V) => boolean,
): Readonly<Record<string, Kept>> => {
  for (const name in values) {
    if (!isKept(name, values[name] as V))
      return Object.fromEntries(Object.entries(values).filter(([other, value]) => isKept(other, value))) as Record<string, Kept>
  }
  return values as Readonly<Record<string, Kept>>
}

/** Values without those of columns that are no longer there: only empty ones get so far. */
const present = (values: Row, shape: Shape): Row => withoutThose(values, (name) => shape.columns.has(name))

/** Values without those that cannot travel: their base is unknown. */
export const known = (values: RowChange["base"]): Row => withoutThose(values, (_, value) => !isRefused(value))

export const startWork = (change: RowChange, table: Table, shape: Shape): Work => {
  const old = Object.fromEntries(table.key.map((name, i) => [name, change.key[i] ?? null]))
  const now = Object.fromEntries(table.key.map((name, i) => [name, currentKey(change)[i] ?? null]))
  const keyed = change.op === "insert" || (change.op === "update" && change.newKey !== null)
  return {
    change,
    table,
    shape,
    id: rowId(change.table, change.key),
    key: textsOf(table, table.key, old),
    base: change.op === "insert" ? {} : { ...known(change.base), ...old },
    mine: present(keyed ? { ...known(change.mine), ...now } : known(change.mine), shape),
    respelled: new Set(),
    theirs: null,
    theirsAt: null,
    xmin: null,
    isMineGreater: new Set(),
    decision: null,
    refusal: null,
    row: {},
    written: new Set(),
    made: {},
    isDelete: false,
    isInsert: false,
    isInside: false,
    at: change.at,
    needs: new Set(),
  }
}
