/**
 * Lives of school files as the link knows them, in memory and in table `reader`. Identity (`put`) is in the file before it is
 * answered for; what a school tells all the time (`seen`) is written down every second, and told again after a crash.
 */
import { quietly } from "../libsql/trouble.ts"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import type { Cell } from "../model/value.ts"

const FLUSH_MS = 1000

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
  readonly tell: (incarnation: string, now: number, part: Partial<Reader>) => void
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

export const makeReaders = (db: LibsqlFile): Effect.Effect<Readers, LibsqlError, Scope.Scope> =>
  Effect.gen(function* () {
    const rows = yield* db.read((tx) => tx.all<Reader>("SELECT * FROM reader"))
    const readers = new Map(rows.map((row) => [row.incarnation, row]))
    const unsaved = new Set<string>()
    const flush = Effect.suspend(() => {
      if (unsaved.size === 0) return Effect.void
      const batch = [...unsaved].flatMap((id) => readers.get(id) ?? [])
      unsaved.clear()
      return Effect.tapError(
        db.write((tx) => save(tx, batch)),
        () =>
          Effect.sync(() => {
            for (const { incarnation } of batch) unsaved.add(incarnation)
          }),
      )
    })
    yield* Effect.forkScoped(Effect.repeat(quietly("where schools stand is not written down")(flush), Schedule.spaced(FLUSH_MS)))
    yield* Effect.addFinalizer(() => Effect.ignoreCause(flush))

    const find = (incarnation: string): Reader | null => readers.get(incarnation) ?? null
    const tell = (incarnation: string, now: number, part: Partial<Reader>): void => {
      const before = readers.get(incarnation)
      if (before === undefined) return
      readers.set(incarnation, { ...before, seen_at: now, ...part })
      unsaved.add(incarnation)
    }

    return {
      find,
      tell,
      get: (incarnation) => Effect.sync(() => find(incarnation)),
      all: Effect.sync(() => [...readers.values()]),
      now: () => readers.values(),
      sent: new Map(),
      put: (reader) =>
        Effect.gen(function* () {
          yield* db.write((tx) => save(tx, [reader]))
          readers.set(reader.incarnation, reader)
        }),
      seen: (incarnation, part) => Effect.map(Clock.currentTimeMillis, (now) => tell(incarnation, now, part)),
    }
  })
