/**
 * The short way for rows that meet nothing in the school: they are laid ready outside of the write lock, of a page of the link
 * already while it comes in, and written in bulk. It ends as the long way does. With nothing pending, held or behind of a row
 * there is nothing to shield, settle, keep or release of it, so all that the long way does is to remove it or to put it, the later
 * of two of its states last; so does this. What is left goes the long way afterwards, in the same transaction: rows of which
 * something waits, records, and all rows of a table of which one was refused.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile } from "../libsql/client.ts"
import type { Held } from "../libsql/messages.ts"
import type { LoadSource, WaitingKeys } from "../libsql/load.ts"
import type { OnLine } from "../link/pages.ts"
import { type Header, PAGE_BYTES, type RowsLine } from "../link/protocol.ts"
import { CAPTURE_OFF, CAPTURE_ON, waitingKeys } from "./cut.ts"
import type { Delivery, Item, Target, Targets } from "./delivery.ts"
import { cursorSql, type Opened, type Opener, SCHOOL_ROW, type SchoolRow } from "./school-row.ts"
import type { Touched } from "./settle.ts"
import { LINE_TEXT, rowsOf, type StagedLine } from "./stage.ts"

/** Fewer rows are written sooner one by one. */
const LOAD_ROWS = 200

/** Lines that lie ready. */
export interface Ready {
  readonly place: number
  readonly plans: Plans
}

/** Tables whose rows are laid ready. */
interface Plans {
  readonly targets: Targets
  readonly tables: ReadonlyArray<Target>
}

/** What is left for the long way. */
export interface Rest {
  /** Lines, counted from the first of those that were to be shown. */
  readonly lines: ReadonlySet<number>
  readonly isIn: (item: Item) => boolean
}

/** A page whose lines come in. */
interface Coming {
  readonly header: Header
  readonly place: number
  /** Those that are not on their way to the place. */
  lines: Array<RowsLine>
  /** How many are. */
  sent: number
  plans: Plans | null
  planning: Promise<void> | null
  /** It will not be applied at once, or not the short way. */
  isOff: boolean
}

export interface Loads {
  /** Loads the lines of a page that will be applied at once, as they come. */
  readonly expect: OnLine
  /** While this page is delivered (null: what is staged) nothing else is loaded, and what lay ready of another one does no longer. */
  readonly during: <A, E, R>(header: Header | null, effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** All lines of a page, or null: its rows go the long way. */
  readonly page: (header: Header, targets: Targets, lines: ReadonlyArray<RowsLine>) => Effect.Effect<Ready | null, LibsqlError>
  readonly staged: (targets: Targets, lines: ReadonlyArray<StagedLine>) => Effect.Effect<Ready | null, LibsqlError>
  /** Writes a whole page that lies ready and puts the cursor to its end, if the school is still as it was found; null: nothing at all. */
  readonly showPage: (ready: Ready, lines: ReadonlyArray<RowsLine>, header: Header, state: SchoolRow) => Effect.Effect<Held | null, LibsqlError>
  /** Writes lines that lie ready, but for rows that are touched or wait; null: none, as more than `most` rows would be left. */
  readonly show: (
    delivery: Delivery,
    ready: Ready,
    from: number,
    to: number,
    most: number,
    touched?: Touched,
  ) => Effect.Effect<Rest | null, LibsqlError>
}

/** So many rows are worth it. */
export const isWorthLoading = (rows: number): boolean => rows >= LOAD_ROWS

const tableOf = ([, , , table]: RowsLine): string => table
const textOf = ([, , , , , text]: RowsLine): string => text
/** For the tables of these lines. */
const among = ({ targets, tables }: Plans, lines: ReadonlyArray<RowsLine>): Plans => {
  const names = new Set(lines.map(tableOf))
  return { targets, tables: tables.filter(({ table }) => names.has(table.name)) }
}

export const makeLoads = (db: LibsqlFile, { open, last }: Opener): Loads => {
  let coming: Coming | null = null
  let isDelivering = false

  const planFor = (targets: Targets, names: Iterable<string>): Plans => ({
    targets,
    tables: [...new Set(names)].flatMap((name) => (targets.plans.has(name) ? (targets.byName.get(name) ?? []) : [])),
  })
  const load = (place: number, { targets, tables }: Plans, source: LoadSource): Effect.Effect<void> =>
    db.load(
      place,
      source,
      tables.flatMap(({ table }) => targets.plans.get(table.name) ?? []),
    )
  const loadAll = Effect.fnUntraced(function* (targets: Targets, names: Iterable<string>, source: LoadSource) {
    const plans = planFor(targets, names)
    if (plans.tables.length === 0) return null
    const place = db.newPlace()
    yield* load(place, plans, source)
    return { plans, place }
  })

  /** The worker has the plans from the first of them on. */
  const send = (page: Coming, plans: Plans, lines: ReadonlyArray<RowsLine>): Effect.Effect<void> => {
    const { targets } = plans
    const some = load(page.place, page.sent === 0 ? plans : { targets, tables: [] }, { texts: lines.map(textOf) })
    page.sent += lines.length
    return some
  }
  const plan = (page: Coming, { targets }: Opened): void => {
    page.plans = planFor(targets, targets.plans.keys())
    page.isOff ||= targets.manifest.version !== page.header.manifest
  }
  const sendWaiting = (page: Coming): Effect.Effect<void> =>
    Effect.suspend(() => {
      const { plans, lines, isOff } = page
      page.lines = []
      return plans === null || isOff || lines.length === 0 ? Effect.void : send(page, plans, lines)
    })

  const expect: OnLine = (header, line) => {
    if (coming?.header !== header) {
      const isWorth = isWorthLoading(header.left) && (header.leftBytes ?? PAGE_BYTES) < PAGE_BYTES && !header.resumed
      const isOff = isDelivering || !isWorth
      coming = { header, place: isOff ? 0 : db.newPlace(), lines: [], sent: 0, plans: null, planning: null, isOff }
      const opened = last()
      if (!isOff && opened?.state.waiting === "quiet") plan(coming, opened)
    }
    const page = coming
    if (page.isOff) return
    page.lines.push(line)
    if (page.plans !== null) Effect.runFork(sendWaiting(page))
    else
      page.planning ??= Effect.runPromise(
        Effect.ignoreCause(
          Effect.gen(function* () {
            plan(page, yield* db.read(open))
            yield* sendWaiting(page)
          }),
        ),
      )
  }

  return {
    expect,
    during: (header, effect) =>
      Effect.suspend(() => {
        isDelivering = true
        if (coming !== null && coming.header !== header) coming.isOff = true
        return Effect.ensuring(
          effect,
          Effect.sync(() => {
            isDelivering = false
          }),
        )
      }),
    page: Effect.fnUntraced(function* (header, targets, lines) {
      const page = coming?.header === header ? coming : null
      // Of the page after it the first lines may have come already.
      if (page !== null) coming = null
      if (!isWorthLoading(rowsOf(lines))) return null
      if (page !== null) {
        const { planning } = page
        if (planning !== null) yield* Effect.promise(() => planning)
        const { plans, place, isOff, sent } = page
        const isWhole = sent + page.lines.length === lines.length
        if (!isOff && isWhole && plans !== null && plans.targets === targets) {
          yield* sendWaiting(page)
          return { plans: among(plans, lines), place }
        }
      }
      return yield* loadAll(targets, lines.map(tableOf), { texts: lines.map(textOf) })
    }),
    staged: (targets, lines) =>
      loadAll(
        targets,
        lines.map(({ table }) => table),
        { sql: LINE_TEXT, numbers: lines.map(({ n }) => n) },
      ),
    showPage: ({ place, plans }, lines, header, state) => {
      const names = new Set(plans.tables.map(({ table }) => table.name))
      // What a full cut no longer names is looked for, and what waits is left out: neither is done here.
      if (state.waiting !== "quiet" || header.full || !lines.every((line) => names.has(tableOf(line)))) return Effect.succeed(null)
      return db.showAlone({
        ...{ place, lines: lines.length, guard: { sql: SCHOOL_ROW, found: JSON.stringify([state]) } },
        ...{ before: [{ sql: CAPTURE_OFF, args: [] }], after: [...cursorSql(header), { sql: CAPTURE_ON, args: [] }] },
      })
    },
    show: Effect.fnUntraced(function* (delivery, { place, plans }, from, to, most, touched = new Map()) {
      if (delivery.manifest !== plans.targets.manifest) return null
      const waiting: WaitingKeys = delivery.isQuiet ? new Map() : yield* waitingKeys(delivery.tx, plans.tables, touched)
      const shown = yield* delivery.tx.show(place, from, to, waiting, most)
      if (shown === null) return null
      const isIn = ({ target, key }: Item): boolean => shown.waiting.get(target.table.name)?.has(key) !== false
      return { lines: new Set(shown.rest), isIn }
    }),
  }
}
