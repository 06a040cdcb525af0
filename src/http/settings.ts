/** `GET|PUT /api/sync/config`, `POST /api/sync/auto/start|stop`: how this node syncs by itself. */
import * as Effect from "effect/Effect"
import { type AnyElysia, Elysia } from "elysia"
import { z } from "zod"
import { Settings, SyncSettings } from "../status/settings.ts"
import { answering } from "./server.ts"

const Change = z
  .strictObject(Object.fromEntries(Object.entries(SyncSettings.shape).map(([name, schema]) => [name, schema.optional()])))
  .refine((part) => Object.keys(part).length > 0, "names no setting") as unknown as z.ZodType<Partial<SyncSettings>>

export const settingsRoutes: Effect.Effect<AnyElysia, never, Settings> = Effect.map(Effect.context<Settings>(), (context) => {
  const answer = answering(context)
  const set = (part: Partial<SyncSettings>) => Settings.use((settings) => settings.set(part))
  return new Elysia({ name: "settings" })
    .get("/api/sync/config", ({ request }) =>
      answer(
        request,
        Settings.use((settings) => settings.get),
      ),
    )
    .put("/api/sync/config", ({ request, body }) => answer(request, set(body)), { body: Change })
    .post("/api/sync/auto/start", ({ request }) =>
      answer(
        request,
        Effect.map(set({ auto: true }), ({ auto }) => ({ success: true, auto })),
      ),
    )
    .post("/api/sync/auto/stop", ({ request }) =>
      answer(
        request,
        Effect.map(set({ auto: false }), ({ auto }) => ({ success: true, auto })),
      ),
    )
})
