/** Hub -> school: asks for pages, from what is durably here, and delivers them. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { readUnenforced, unenforcedText } from "../libsql/unenforced.ts"
import { Libsql, type LibsqlError, type LibsqlFile } from "../libsql/client.ts"
import { freeze } from "../libsql/freeze.ts"
import { isSchemaMoved, readGaps, refuseGap } from "../libsql/gap.ts"
import { prepareRebuilds } from "../libsql/rebuild.ts"
import { installTables, type InstallOptions, readChanged, type TableRefused } from "../libsql/schema.ts"
import type { LinkError } from "../link/answer.ts"
import type { Identity, Link } from "../link/client.ts"
import type { PulledPage } from "../link/pages.ts"
import type { Header } from "../link/protocol.ts"
import type { Manifest } from "../model/table.ts"
import { hearMissed } from "./missed.ts"
import { Deliver, type Delivered, type DeliverRefused } from "./deliver.ts"

export interface PullOptions extends InstallOptions {
  /** Deliver although a table has a gap: head office is too far ahead to compare with, and only pulling brings it nearer. */
  readonly mayHaveGaps?: boolean
  /** Waited for before a page is taken. */
  readonly turn?: Effect.Effect<void>
  /** Runs in the same transaction as the tables' own installation. */
  readonly alsoInstall: (tx: Parameters<Parameters<LibsqlFile["write"]>[0]>[0], manifest: Manifest) => Effect.Effect<void, LibsqlError>
}

/** Open writes are frozen in short transactions before the columns change; the installation freezes what comes between. */
const freezeAhead = (db: LibsqlFile): Effect.Effect<void, LibsqlError> =>
  Effect.gen(function* () {
    for (;;) {
      if ((yield* db.read(readGaps)).length > 0 || (yield* isSchemaMoved(db))) return
      const now = yield* Clock.currentTimeMillis
      const isMore = yield* db.write((tx) =>
        Effect.gen(function* () {
          const [state] = yield* tx.all<{ manifest: string | null }>("SELECT manifest FROM schoolbus_state")
          return state?.manifest == null ? false : (yield* freeze(tx, JSON.parse(state.manifest) as Manifest, now)).isMore
        }),
      )
      if (!isMore) return
    }
  })

/** Fetches the manifest and makes the file fit it. */
export const refreshManifest = (
  link: Link,
  identity: Identity,
  options: PullOptions,
): Effect.Effect<Manifest, LinkError | LibsqlError | TableRefused, Libsql | Deliver> =>
  Effect.gen(function* () {
    const deliver = yield* Deliver
    const db = yield* Libsql
    const manifest = yield* link.manifest(identity)
    yield* hearMissed(db, manifest, (at, keys) => link.compare.again(identity, { at, names: {}, keys }))
    const changed = yield* db.read((tx) => readChanged(tx, manifest))
    if (changed.length > 0) yield* Effect.andThen(freezeAhead(db), prepareRebuilds(db, changed))
    yield* db.write((tx) => Effect.andThen(installTables(tx, manifest, options), options.alsoInstall(tx, manifest)))
    for (const one of yield* db.read(readUnenforced)) yield* Effect.logWarning(`table ${one.name}: ${unenforcedText(one)}`)
    yield* deliver.empty
    return manifest
  })

export type Pulled =
  /** Everything that the hub has for us is here. `asked`: head office wants a sync now. */
  | { readonly kind: "nothing"; readonly asked: boolean }
  /** The line broke inside the page; what had arrived is staged. */
  | { readonly kind: "part" | "page"; readonly delivered: Delivered; readonly header: Header; readonly tables: Readonly<Record<string, number>> }

type PullError = LinkError | LibsqlError | TableRefused | DeliverRefused

/** A new manifest is installed before its rows are applied. */
const takePage = (link: Link, identity: Identity, options: PullOptions, page: PulledPage): Effect.Effect<Pulled, PullError, Libsql | Deliver> =>
  Effect.gen(function* () {
    const deliver = yield* Deliver
    if (options.turn !== undefined) yield* options.turn
    if (options.mayHaveGaps !== true) yield* refuseGap(yield* Libsql)
    const attempt = deliver.page(page.header, page.lines, page.trailer)
    const delivered = yield* attempt.pipe(
      Effect.catchTag("DeliverRefused", (error) =>
        error.reason === "manifest" ? Effect.andThen(refreshManifest(link, identity, options), attempt) : Effect.fail(error),
      ),
    )
    const tables: Record<string, number> = {}
    for (const [, , , table, rows] of page.lines) tables[table] = (tables[table] ?? 0) + rows
    return { kind: page.trailer === null ? "part" : "page", delivered, header: page.header, tables }
  })

/**
 * One page, waiting up to `wait` seconds for something new. `last`: what came before it; where that has ended a cut the school is at
 * its end, unless it says otherwise when the page is to be taken.
 */
export const pullOnce = (
  link: Link,
  identity: Identity,
  options: PullOptions,
  wait: number,
  last?: Pulled,
): Effect.Effect<Pulled, PullError, Libsql | Deliver> =>
  Effect.gen(function* () {
    const deliver = yield* Deliver
    const isAtEnd = last?.kind === "page" && last.delivered.applied
    const at = isAtEnd ? { cursor: last.delivered.cursor, staged: null, manifest: last.header.manifest } : yield* deliver.position
    const page = yield* link.pull(identity, at.cursor, at.staged, wait, at.manifest, deliver.expect)
    if (typeof page === "string") return { kind: "nothing", asked: page === "asked" }
    const taken = takePage(link, identity, options, page)
    return yield* isAtEnd ? Effect.catchTag(taken, "DeliverRefused", () => pullOnce(link, identity, options, wait)) : taken
  })

/**
 * How often an open stream looks whether its cursor still stands: a program that drops a table puts it back to the beginning, and
 * the hub would not hear of it before it has something new.
 */
const TORN_POLL_MS = 500

/**
 * Pages as they come, until the line ends; `unsuited`: no stream comes through here. A page that did not fit what is here ends
 * it without a fault: the hub goes on from where it believes us to be, so it must be told anew.
 */
const streamPages = (
  link: Link,
  identity: Identity,
  options: PullOptions,
  onPulled: (pulled: Pulled) => Effect.Effect<void, PullError>,
): Effect.Effect<"unsuited" | "anew", PullError, Libsql | Deliver> =>
  Effect.scoped(
    Effect.gen(function* () {
      const deliver = yield* Deliver
      const { cursor, staged, manifest } = yield* deliver.position
      const stream = yield* link
        .stream(identity, cursor, staged, manifest, deliver.expect)
        .pipe(Effect.catchTag("LinkRefused", (error) => (error.status === 404 ? Effect.succeed("unsuited" as const) : Effect.fail(error))))
      if (stream === "unsuited") return stream
      let hasCut = cursor.epoch !== ""
      const torn = Effect.gen(function* () {
        do yield* Effect.sleep(TORN_POLL_MS)
        while (!hasCut || (yield* deliver.position).cursor.epoch !== "")
        return "torn" as const
      })
      for (;;) {
        const page = yield* Effect.raceFirst(stream.next, torn)
        if (page === "torn") return "anew"
        const pulled =
          typeof page === "string" ? ({ kind: "nothing", asked: page === "asked" } as const) : yield* takePage(link, identity, options, page)
        yield* onPulled(pulled)
        if (pulled.kind === "nothing") continue
        if (!pulled.delivered.taken) return "anew"
        hasCut ||= pulled.delivered.applied
      }
    }),
  )

/** Through a proxy that held a stream up, the next one is tried after so long. */
const STREAM_AGAIN_MS = 30 * 60_000
const WAIT_SECONDS = 25

/** What is known of the way to the hub, over all sessions. */
export interface Way {
  /** ms since 1970; until then pages are asked for one by one. */
  noStreamUntil: number
}

/** Takes what comes, for ever: from a stream where the way to the hub lets one through, else by asking again and again. */
export const follow = (
  link: Link,
  identity: Identity,
  options: PullOptions,
  way: Way,
  onPulled: (pulled: Pulled) => Effect.Effect<void, PullError>,
): Effect.Effect<never, PullError, Libsql | Deliver> =>
  Effect.gen(function* () {
    let last: Pulled | undefined
    for (;;) {
      const now = yield* Clock.currentTimeMillis
      if (now < way.noStreamUntil) {
        last = yield* pullOnce(link, identity, options, WAIT_SECONDS, last)
        yield* onPulled(last)
        continue
      }
      last = undefined
      if ((yield* streamPages(link, identity, options, onPulled)) === "anew") continue
      way.noStreamUntil = now + STREAM_AGAIN_MS
      yield* Effect.logInfo("something on the way to the hub holds a stream up (a proxy that collects bytes?); asking for pages one by one")
    }
  })
