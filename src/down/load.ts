/**
 * The short way for rows that meet nothing in the school: they are laid ready outside of the write lock, of a page of the link
 * already while it comes in, and written in bulk. It ends as the long way does. With nothing pending, held or behind there is
 * nothing to freeze, shield, settle, keep or release, so all that the long way does is to remove rows and to put rows, the later
 * of two states of one row last; so does this. And where one row of some lines is refused, none of them is written, and the
 * long way takes them all.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { LoadSource } from "../libsql/load.ts"
import type { OnLine } from "../link/pages.ts"
import { type Header, PAGE_BYTES, type RowsLine } from "../link/protocol.ts"
import type { Waiting } from "./cut.ts"
import type { Delivery, Targets } from "./delivery.ts"
import { LINE_TEXT, type StagedLine } from "./stage.ts"

/** Fewer rows are written sooner one by one. */
const LOAD_ROWS = 200

/** Lines that lie ready. */
export interface Ready {
  readonly place: number
  readonly targets: Targets
}

/** A page whose lines come in. */
interface Coming {
  readonly header: Header
  readonly lines: Array<RowsLine>
  /** How many of them lie ready. */
  loaded: number
  ready: Ready | null
  /** It will not be applied at once, or not the short way. */
  isOff: boolean
  loading: Promise<void> | null
}

export interface Loads {
  /** Loads the lines of a page that will be applied at once, as they come. */
  readonly expect: OnLine
  /** While pages are delivered nothing else is loaded. */
  readonly during: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** All lines of a page, or null: its rows go the long way. */
  readonly page: (header: Header, targets: Targets, lines: ReadonlyArray<RowsLine>) => Effect.Effect<Ready | null, LibsqlError>
  readonly staged: (targets: Targets, lines: ReadonlyArray<StagedLine>) => Effect.Effect<Ready | null, LibsqlError>
  /** Writes lines that lie ready, all of them or none. */
  readonly show: (delivery: Delivery, ready: Ready, from: number, to: number) => Effect.Effect<boolean, LibsqlError>
}

const tableOf = ([, , , table]: RowsLine): string => table
const textOf = ([, , , , , text]: RowsLine): string => text

export const makeLoads = (
  db: LibsqlFile,
  open: (tx: Tx) => Effect.Effect<{ readonly state: { readonly waiting: Waiting }; readonly targets: Targets }, LibsqlError>,
): Loads => {
  let coming: Coming | null = null
  let isDelivering = false

  const load = Effect.fnUntraced(function* (before: Ready | null, targets: Targets, tables: ReadonlySet<string>, source: LoadSource) {
    const plans = [...tables].flatMap((table) => targets.plans.get(table) ?? [])
    if (plans.length < tables.size) return null
    return { place: yield* db.load(before?.place ?? null, source, plans), targets }
  })
  const loadLines = (before: Ready | null, targets: Targets, lines: ReadonlyArray<RowsLine>) =>
    load(before, targets, new Set(lines.map(tableOf)), { texts: lines.map(textOf) })

  /** Loads what has come so far. */
  const catchUp = Effect.fnUntraced(function* (page: Coming) {
    const { targets, waiting } = yield* db.read((tx) => Effect.map(open(tx), ({ targets, state }) => ({ targets, waiting: state.waiting })))
    if (waiting !== "quiet" || targets.manifest.version !== page.header.manifest) page.isOff = true
    while (!page.isOff && page.loaded < page.lines.length) {
      const some = page.lines.slice(page.loaded)
      page.ready = yield* loadLines(page.ready, targets, some)
      page.isOff = page.ready === null
      page.loaded += some.length
    }
  })

  const expect: OnLine = (header, line) => {
    if (coming?.header !== header) {
      const isWorth = header.left >= LOAD_ROWS && (header.leftBytes ?? PAGE_BYTES) < PAGE_BYTES && !header.resumed
      coming = { header, lines: [], loaded: 0, ready: null, isOff: isDelivering || !isWorth, loading: null }
    }
    const page = coming
    if (page.isOff) return
    page.lines.push(line)
    page.loading ??= Effect.runPromise(Effect.ignoreCause(catchUp(page))).then(() => {
      page.loading = null
    })
  }

  return {
    expect,
    during: (effect) =>
      Effect.suspend(() => {
        isDelivering = true
        return Effect.ensuring(
          effect,
          Effect.sync(() => {
            isDelivering = false
          }),
        )
      }),
    page: Effect.fnUntraced(function* (header, targets, lines) {
      const page = coming
      coming = null
      if (lines.reduce((n, [, , , , rows]) => n + rows, 0) < LOAD_ROWS) return null
      if (page === null || page.header !== header) return yield* loadLines(null, targets, lines)
      const { loading } = page
      if (loading !== null) yield* Effect.promise(() => loading)
      if (page.ready === null || page.isOff || page.ready.targets !== targets) return yield* loadLines(null, targets, lines)
      return page.loaded === lines.length ? page.ready : yield* loadLines(page.ready, targets, lines.slice(page.loaded))
    }),
    staged: (targets, lines) => load(null, targets, new Set(lines.map(({ table }) => table)), { sql: LINE_TEXT, numbers: lines.map(({ n }) => n) }),
    show: (delivery, ready, from, to) =>
      delivery.isQuiet && delivery.manifest === ready.targets.manifest
        ? Effect.map(delivery.tx.show(ready.place, from, to), (refusal) => refusal === null)
        : Effect.succeed(false),
  }
}
