/** Hub -> school: asks for the next page, from what is durably here, and delivers it. */
import * as Effect from "effect/Effect"
import { Libsql, type LibsqlError, type LibsqlFile } from "../libsql/client.ts"
import { installTables, type InstallOptions, type TableRefused } from "../libsql/schema.ts"
import type { Identity, Link, LinkError } from "../link/client.ts"
import type { Manifest } from "../model/table.ts"
import { Deliver, type Delivered, type DeliverRefused } from "./deliver.ts"

export interface PullOptions extends InstallOptions {
  /** Runs in the same transaction as the tables' own installation. */
  readonly alsoInstall: (tx: Parameters<Parameters<LibsqlFile["write"]>[0]>[0], manifest: Manifest) => Effect.Effect<void, LibsqlError>
}

/** Fetches the manifest and makes the file fit it. */
export const refreshManifest = (
  link: Link,
  identity: Identity,
  options: PullOptions,
): Effect.Effect<Manifest, LinkError | LibsqlError | TableRefused, Libsql> =>
  Effect.gen(function* () {
    const db = yield* Libsql
    const manifest = yield* link.manifest(identity)
    yield* db.write((tx) => Effect.andThen(installTables(tx, manifest, options), options.alsoInstall(tx, manifest)))
    return manifest
  })

export type Pulled =
  /** `asked`: head office wants a sync now. */
  | { readonly kind: "nothing"; readonly asked: boolean }
  /** The line broke inside the page; what had arrived is staged. */
  | { readonly kind: "part"; readonly delivered: Delivered; readonly left: number }
  | { readonly kind: "page"; readonly delivered: Delivered; readonly left: number }

/** One page, waiting up to `wait` seconds for something new. A new manifest is installed before its rows are applied. */
export const pullOnce = (
  link: Link,
  identity: Identity,
  options: PullOptions,
  wait: number,
): Effect.Effect<Pulled, LinkError | LibsqlError | TableRefused | DeliverRefused, Libsql | Deliver> =>
  Effect.gen(function* () {
    const deliver = yield* Deliver
    const page = yield* link.pull(identity, yield* deliver.cursor, yield* deliver.staged, wait)
    if (typeof page === "string") return { kind: "nothing", asked: page === "asked" }
    const attempt = deliver.page(page.header, page.lines, page.trailer)
    const delivered = yield* attempt.pipe(
      Effect.catchTag("DeliverRefused", (error) =>
        error.reason === "manifest" ? Effect.andThen(refreshManifest(link, identity, options), attempt) : Effect.fail(error),
      ),
    )
    return { kind: page.trailer === null ? "part" : "page", delivered, left: page.header.left }
  })
