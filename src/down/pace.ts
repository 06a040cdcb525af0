/**
 * How long deliver holds the school's write lock. Its transactions are cut by the time that they take, on this machine and
 * now, and leave the lock alone afterwards for as long as a waiting program sleeps between two looks.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { elapsedMs } from "../elapsed.ts"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import { freeze } from "../libsql/freeze.ts"
import type { Held } from "../libsql/messages.ts"
import { delivering, readWaiting, type Waiting } from "./cut.ts"
import type { Delivery, Targets } from "./delivery.ts"

/** A page that is likely to need the write lock for longer is applied in chunks: half of what a program may have to wait. */
const STRAIGHT_MS = 100
/** Write lock that one chunk aims at: a program that comes in its middle still looks often enough to get its turn after it. */
const CHUNK_MS = 70
/** A chunk is written in slices of about this long, and ends when the next one would not fit. */
const SLICE_MS = 15
const SLICE_ROWS = { least: 100, most: 5_000 }
/** Rows are taken to need this long until some were measured. */
const FIRST_MS_PER_ROW = 0.024
/**
 * After a stretch that a program may have waited for, the lock is left alone for longer than SQLite's busy handler then
 * sleeps: it looks every 25 ms at first, every 50 ms after 128 ms, and every 100 ms in the end.
 */
const breathMs = (heldMs: number): number => (heldMs <= BRIEF_MS ? 0 : heldMs <= 100 ? 30 : heldMs <= 200 ? 60 : 110)
/** Transactions that follow each other closely count as one stretch; up to so long, no program waits for it noticeably. */
const BRIEF_MS = 35
/** So much of a stretch is forgotten in a pause as long as the breath that would follow it. */
const FORGOTTEN_PER_MS = 70 / 30
const CHECKPOINT_AFTER_MS = 40

export interface Pace {
  /** One write transaction with capture off, not too soon after the one before; answers how long it held the lock, too. */
  readonly deliver: <A>(
    body: (delivery: Delivery) => Effect.Effect<A, LibsqlError>,
  ) => Effect.Effect<{ readonly value: A; readonly heldMs: number }, LibsqlError>
  /** The same for a transaction that is made elsewhere and tells for how long it held the lock; null: there was none. */
  readonly alone: (act: Effect.Effect<Held | null, LibsqlError>) => Effect.Effect<{ readonly heldMs: number } | null, LibsqlError>
  /** `isLoaded`: the rows lay ready, which is another speed. */
  readonly measure: (isLoaded: boolean, rows: number, ms: number) => void
  /** So many rows may be written in one transaction beside `loaded` ones that lie ready; below 0: not even those. */
  readonly straightRows: (loaded: number) => number
  /** Rows of the next slice. */
  readonly sliceRows: (isLoaded: boolean) => number
  /** Whether a slice as long as the last one still fits into this transaction. */
  readonly hasRoom: (delivery: Delivery, now: number, sliceMs: number) => boolean
}

export const makePace = (
  db: LibsqlFile,
  open: (
    tx: Tx,
  ) => Effect.Effect<{ readonly state: { readonly incarnation: string; readonly waiting: Waiting }; readonly targets: Targets }, LibsqlError>,
): Pace => {
  let endedAt = 0
  let stretchMs = 0
  let msPerRow = FIRST_MS_PER_ROW
  let msPerLoadedRow = FIRST_MS_PER_ROW
  let commitMs = 0
  const speed = (isLoaded: boolean): number => (isLoaded ? msPerLoadedRow : msPerRow)

  /** A long list of open writes is frozen beforehand, a batch at a time. */
  const freezeBacklog = Effect.gen(function* () {
    while ((yield* db.read(readWaiting)) === "backlog") {
      const [now, began] = [yield* Clock.currentTimeMillis, yield* elapsedMs]
      const { changes, isMore } = yield* db.write((tx) => Effect.flatMap(open(tx), ({ targets }) => freeze(tx, targets.manifest, now)))
      if (changes === 0 && !isMore) return
      yield* Effect.sleep(breathMs((yield* elapsedMs) - began))
    }
  })

  /** Else the next program that commits would have to carry over what we wrote. */
  const checkpoint = Effect.ignoreCause(db.read((tx) => tx.all("PRAGMA wal_checkpoint(PASSIVE)")))
  /** A slow row counts at once, a fast one little by little: the machine may be busy again in a moment. */
  const measure: Pace["measure"] = (isLoaded, rows, ms) => {
    if (rows < SLICE_ROWS.least) return
    const now = ms / rows
    if (isLoaded) msPerLoadedRow = Math.max(now, 0.7 * msPerLoadedRow + 0.3 * now)
    else msPerRow = Math.max(now, 0.7 * msPerRow + 0.3 * now)
  }
  const myTurn = Effect.gen(function* () {
    const early = endedAt + breathMs(stretchMs) - (yield* elapsedMs)
    if (early > 0) yield* Effect.sleep(early)
  })
  /** A transaction has ended just now. */
  const note = Effect.fnUntraced(function* (held: Held) {
    const { heldMs } = held
    const ended = yield* elapsedMs
    commitMs = Math.max(held.commitMs, 0.5 * commitMs)
    stretchMs = Math.max(0, stretchMs - Math.max(0, ended - heldMs - endedAt) * FORGOTTEN_PER_MS) + heldMs
    endedAt = ended
    if (heldMs > CHECKPOINT_AFTER_MS) yield* checkpoint
  })
  const deliver = Effect.fnUntraced(function* <A>(body: (delivery: Delivery) => Effect.Effect<A, LibsqlError>) {
    let began = 0
    let written = 0
    /** null: programs have written so much meanwhile that it is frozen first. */
    const attempt = (isFrozen: boolean) =>
      db.write((tx) =>
        Effect.gen(function* () {
          const { state, targets } = yield* open(tx)
          const { incarnation, waiting } = state
          if (waiting === "backlog" && !isFrozen) return null
          // The lock is held from the first answer on.
          began = yield* elapsedMs
          const delivery: Delivery = { ...targets, tx, incarnation, now: yield* Clock.currentTimeMillis, began, isQuiet: waiting === "quiet" }
          const done = yield* delivering(delivery, waiting === "open" || waiting === "backlog", body(delivery))
          written = yield* elapsedMs
          return { done }
        }),
      )
    let result: { readonly done: A } | null = null
    for (let isFrozen = false; result === null; isFrozen = true) {
      if (isFrozen) yield* freezeBacklog
      yield* myTurn
      result = yield* attempt(isFrozen)
    }
    const value = result.done
    const ended = yield* elapsedMs
    const heldMs = ended - began
    yield* note({ heldMs, commitMs: ended - written })
    return { value, heldMs }
  })
  const alone: Pace["alone"] = Effect.fnUntraced(function* (act) {
    yield* myTurn
    const held = yield* act
    if (held !== null) yield* note(held)
    return held
  })

  return {
    deliver,
    alone,
    measure,
    straightRows: (loaded) => Math.floor((STRAIGHT_MS - commitMs - loaded * msPerLoadedRow) / msPerRow),
    sliceRows: (isLoaded) => Math.max(SLICE_ROWS.least, Math.min(SLICE_ROWS.most, Math.floor(SLICE_MS / speed(isLoaded)))),
    hasRoom: (delivery, now, sliceMs) => now - delivery.began + sliceMs + commitMs <= CHUNK_MS,
  }
}
