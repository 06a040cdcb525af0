/**
 * Lives of school files as the link knows them, in memory and in table `reader`. Identity (`put`) is in the file before it is
 * answered for; how far a school is (`seen`) is written down every second; that it is still there, and how it is (`tell`),
 * every minute, of all schools together. Both are told again after a crash.
 */
import { quietly } from "../libsql/trouble.ts"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { Cell } from "../model/value.ts"

const FLUSH_MS = 1000
/** Thousands of schools at rest tell three times a minute that nothing has changed. */
const FLUSH_TOLD_MS = 60_000

/** One life of a school's file: the row of table `reader`. */
export interface Reader {
  readonly incarnation: string
  readonly school: string
  readonly token: number
  readonly secret: string
  readonly secret_last: string
  readonly shown: number
  readonly epoch: string
  readonly seq: number
  readonly cut: string
  readonly batch: number
  readonly pending: number | null
  readonly seen_at: number
  readonly status: string | null
  readonly closed: number
}

export interface Readers {
  readonly get: (incarnation: string) => Effect.Effect<Reader | null>
  /** The same as plain calls; what is told needs no answer, and of a file that is not known it is forgotten. */
  readonly find: (incarnation: string) => Reader | null
  /** A sign of life. */
  readonly tell: (incarnation: string, now: number, said: Pick<Reader, "pending" | "status">) => void
  /** The same of what must not be forgotten. */
  readonly note: (incarnation: string, now: number, part: Partial<Reader>) => void
  readonly all: Effect.Effect<ReadonlyArray<Reader>>
  readonly now: () => Iterable<Reader>
  /** By incarnation, the head of the last complete page that went out to it: it may have it, and has not said so yet. */
  readonly sent: Map<string, number>
  readonly put: (reader: Reader) => Effect.Effect<void, LibsqlError>
  readonly seen: (incarnation: string, part: Partial<Reader>) => Effect.Effect<void>
}

/** The columns of table `reader`, in the order in which they are bound. */
const COLUMNS = [
  "incarnation",
  "school",
  "token",
  "secret",
  "secret_last",
  "shown",
  "epoch",
  "seq",
  "cut",
  "batch",
  "pending",
  "seen_at",
  "status",
  "closed",
] as const satisfies ReadonlyArray<keyof Reader>
const SAVE = `INSERT INTO reader (${COLUMNS.join(", ")}) VALUES (${COLUMNS.map(() => "?").join(", ")})
  ON CONFLICT (incarnation) DO UPDATE SET ${COLUMNS.slice(1)
    .map((name) => `${name} = excluded.${name}`)
    .join(", ")}`

const cellOf = (value: Reader[keyof Reader]): Cell => (typeof value === "number" ? BigInt(Math.trunc(value)) : value)
const save = (tx: Tx, readers: ReadonlyArray<Reader>): Effect.Effect<void, LibsqlError> =>
  Effect.asVoid(
    tx.many(
      SAVE,
      readers.map((reader) => COLUMNS.map((name) => cellOf(reader[name]))),
    ),
  )

/** Column by column: an engine copies an object that it does not know in many times the time, and this is done for every heartbeat. */
const toldOf = (before: Reader, now: number, pending: number | null, status: string | null): Reader => ({
  incarnation: before.incarnation,
  school: before.school,
  token: before.token,
  secret: before.secret,
  secret_last: before.secret_last,
  shown: before.shown,
  epoch: before.epoch,
  seq: before.seq,
  cut: before.cut,
  batch: before.batch,
  pending,
  seen_at: now,
  status,
  closed: before.closed,
})

export const makeReaders = (db: LibsqlFile): Effect.Effect<Readers, LibsqlError, Scope.Scope> =>
  Effect.gen(function* () {
    const rows = yield* db.read((tx) => tx.all<Reader>("SELECT * FROM reader"))
    const readers = new Map(rows.map((row) => [row.incarnation, row]))
    const noted = new Set<string>()
    const told = new Set<string>()
    const flush = (unsaved: Set<string>): Effect.Effect<void, LibsqlError> =>
      Effect.suspend(() => {
        if (unsaved.size === 0) return Effect.void
        const batch = [...unsaved].flatMap((id) => readers.get(id) ?? [])
        for (const { incarnation } of batch) told.delete(incarnation)
        unsaved.clear()
        return Effect.tapError(
          db.write((tx) => save(tx, batch)),
          () =>
            Effect.sync(() => {
              for (const { incarnation } of batch) unsaved.add(incarnation)
            }),
        )
      })
    yield* Effect.forkScoped(Effect.repeat(quietly("where schools stand is not written down")(flush(noted)), Schedule.spaced(FLUSH_MS)))
    yield* Effect.forkScoped(Effect.repeat(quietly("what schools say is not written down")(flush(told)), Schedule.spaced(FLUSH_TOLD_MS)))
    yield* Effect.addFinalizer(() => Effect.andThen(Effect.ignoreCause(flush(noted)), Effect.ignoreCause(flush(told))))

    const find = (incarnation: string): Reader | null => readers.get(incarnation) ?? null
    const note: Readers["note"] = (incarnation, now, part) => {
      const before = readers.get(incarnation)
      if (before === undefined) return
      readers.set(incarnation, { ...before, seen_at: now, ...part })
      noted.add(incarnation)
    }
    const tell: Readers["tell"] = (incarnation, now, { pending, status }) => {
      const before = readers.get(incarnation)
      if (before === undefined) return
      readers.set(incarnation, toldOf(before, now, pending, status))
      told.add(incarnation)
    }

    return {
      find,
      tell,
      note,
      get: (incarnation) => Effect.sync(() => find(incarnation)),
      all: Effect.sync(() => [...readers.values()]),
      now: () => readers.values(),
      sent: new Map(),
      put: (reader) =>
        Effect.gen(function* () {
          yield* db.write((tx) => save(tx, [reader]))
          readers.set(reader.incarnation, reader)
        }),
      seen: (incarnation, part) => Effect.map(Clock.currentTimeMillis, (now) => note(incarnation, now, part)),
    }
  })
