/** The link while a session with the hub is open, for whoever asks beside the session's own loops. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Identity, Link } from "./client.ts"

export interface Open {
  readonly link: Link
  readonly identity: Identity
}

export class OpenLink extends Context.Service<
  OpenLink,
  {
    /** null: no session. */
    readonly get: Effect.Effect<Open | null>
    /** The link is known as open while the effect runs. */
    readonly during: (open: Open) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  }
>()("schoolbus/link/OpenLink") {
  static readonly layer = Layer.sync(OpenLink, () => {
    let now: Open | null = null
    const become = (open: Open | null) =>
      Effect.sync(() => {
        now = open
      })
    return OpenLink.of({
      get: Effect.sync(() => now),
      during: (open) => (effect) =>
        Effect.acquireUseRelease(
          become(open),
          () => effect,
          () => become(null),
        ),
    })
  })
}
