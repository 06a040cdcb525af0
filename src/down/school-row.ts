/** The one row of the school's file: of whom it is, up to where it is applied, and the cut under way. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import type { Statement } from "../libsql/messages.ts"
import { tearUnfit } from "../libsql/unfit.ts"
import type { Header } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import type { Manifest } from "../model/table.ts"
import { WAITING, type Waiting } from "./cut.ts"
import { readTargets, type Targets } from "./delivery.ts"

/** The cut that is being applied in chunks. */
export interface Applying {
  readonly header: Header
  /** Only the classes above this one are applied so far, the rest is still on its way; 0 = the cut is complete. */
  readonly above: number
  /** Keys are noted, and what was not met is removed at the end. */
  readonly sweep: boolean
}

export interface SchoolRow {
  readonly incarnation: string
  readonly school: string | null
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly manifest: string | null
  readonly applying: string | null
  /** Tables that do not fit, as one text. */
  readonly unfit: string | null
  readonly waiting: Waiting
  /** 1: lines are staged. */
  readonly staged: number
  /** 1: a table has left the manifest and is to be emptied. */
  readonly gone: number
  /** How many tables have another key since the applied cut. */
  readonly renewed: number
}

export const cursorOf = (row: Pick<SchoolRow, "epoch" | "seq" | "cut">): Cursor => ({ epoch: row.epoch, seq: row.seq, cut: row.cut })
export const cursorAt = (header: Header): Cursor => ({ epoch: header.epoch, seq: header.head, cut: header.headCut })

/** All that decides how a page goes, in one statement. */
export const SCHOOL_ROW = `SELECT incarnation, school, epoch, seq, cut, manifest, applying,
    (SELECT group_concat(name || reason) FROM schoolbus_unfit) AS unfit, ${WAITING} AS waiting,
    EXISTS (SELECT 1 FROM schoolbus_stage) AS staged, EXISTS (SELECT 1 FROM schoolbus_tables WHERE gone = 1) AS gone,
    (SELECT count(*) FROM schoolbus_tables WHERE renewed = 1) AS renewed
  FROM schoolbus_state`

export const readSchool = (tx: Tx): Effect.Effect<SchoolRow, LibsqlError> =>
  Effect.map(tx.all<SchoolRow>(SCHOOL_ROW), ([row]) => {
    if (row === undefined) throw new Error("schoolbus_state has no row: the file has no incarnation yet")
    return row
  })

export const applyingOf = ({ applying }: SchoolRow): Applying | null => (applying === null ? null : (JSON.parse(applying) as Applying))

/** The cut under way is not all here yet. */
export const isReceiving = (school: SchoolRow): boolean => applyingOf(school)?.above !== 0

/** Puts the cursor to the end of a cut. */
export const cursorSql = (header: Header): ReadonlyArray<Statement> => [
  { sql: "UPDATE schoolbus_state SET epoch = ?, seq = ?, cut = ?, applying = NULL", args: [header.epoch, header.head, header.headCut] },
  { sql: "UPDATE schoolbus_tables SET renewed = 0 WHERE renewed = 1", args: [] },
]

export const setCursor = (tx: Tx, header: Header): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    for (const { sql, args } of cursorSql(header)) yield* tx.ahead(sql, args)
    // What a full cut no longer names cannot be taken out of a table that does not fit.
    if (header.full) yield* tearUnfit(tx)
  })

export const countBehind = (tx: Tx): Effect.Effect<number, LibsqlError> =>
  Effect.map(tx.all<{ n: number }>("SELECT count(*) AS n FROM schoolbus_behind"), ([row]) => row?.n ?? 0)

const NO_MANIFEST: Manifest = { version: 0, school: { id: "", name: "" }, tables: [] }

/** What a page is delivered into. */
export interface Opened {
  readonly state: SchoolRow
  readonly targets: Targets
}

export interface Opener {
  /** Reads the row, and the tables only when they have changed since the last time. */
  readonly open: (tx: Tx) => Effect.Effect<Opened, LibsqlError>
  /** What was read last, however long ago; null: nothing yet. */
  readonly last: () => Opened | null
}

export const makeOpener = (): Opener => {
  let last: Opened | null = null
  return {
    last: () => last,
    open: Effect.fnUntraced(function* (tx) {
      const state = yield* readSchool(tx)
      const isSame = last?.state.manifest === state.manifest && last.state.unfit === state.unfit && last.state.renewed === state.renewed
      const manifest = () => (state.manifest === null ? NO_MANIFEST : (JSON.parse(state.manifest) as Manifest))
      const opened: Opened = { state, targets: last !== null && isSame ? last.targets : yield* readTargets(tx, manifest()) }
      last = opened
      return opened
    }),
  }
}
