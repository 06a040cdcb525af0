/**
 * Parts of batches that are still coming in, as files: a school behind a thin link gets its batch through however often the
 * line breaks or the hub restarts. One batch per school file at a time; what is not finished in a week is removed.
 */
import { mkdir, open, readdir, readFile, rename, rm, rmdir, stat } from "node:fs/promises"
import { join } from "node:path"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"

/** Of all schools together. */
export const MAX_UPLOADS_BYTES = 2 * 1024 ** 3
const MAX_AGE_MS = 7 * 24 * 3600_000
const SWEEP_MS = 3600_000

/** Names one batch and the way it was cut; every field is checked at the edge, so it is safe as a file name. */
export interface Upload {
  readonly incarnation: string
  readonly batch: number
  readonly hash: string
  readonly size: number
  readonly parts: number
}

/** For what is not there, or is no folder. A folder that cannot be read is a fault, and not empty. */
const absent =
  <A>(instead: A) =>
  (cause: NodeJS.ErrnoException): A => {
    if (cause.code === "ENOENT" || cause.code === "ENOTDIR") return instead
    throw cause
  }

/** The disk of the hub is full, or the parts of all schools together take too much of it. */
export class UploadsFull extends Data.TaggedError("UploadsFull")<{ readonly message: string }> {}

export interface Uploads {
  /** Keeps a part, as sent; returns after it is on the disk. */
  readonly put: (upload: Upload, part: number, bytes: Uint8Array) => Effect.Effect<void, UploadsFull>
  readonly missing: (upload: Upload) => Effect.Effect<ReadonlyArray<number>>
  /** The parts in order, as sent. */
  readonly parts: (upload: Upload) => Effect.Effect<ReadonlyArray<Uint8Array>>
  readonly drop: (upload: Upload) => Effect.Effect<void>
}

export const openUploads = (root: string, now: () => number = Date.now): Effect.Effect<Uploads, never, Scope.Scope> =>
  Effect.gen(function* () {
    const folderOf = (upload: Upload) => join(root, upload.incarnation, `${upload.batch}-${upload.hash}-${upload.size}-${upload.parts}`)
    const present = async (upload: Upload): Promise<ReadonlySet<number>> =>
      new Set((await readdir(folderOf(upload)).catch(absent([]))).filter((name) => /^\d+$/.test(name)).map(Number))

    /** Removes what is too old, and says how much is left. A folder counts as well: it may have been made just now. */
    const sweep = async (): Promise<number> => {
      let bytes = 0
      for (const incarnation of await readdir(root).catch(absent([]))) {
        const parent = join(root, incarnation)
        for (const batch of await readdir(parent).catch(absent([]))) {
          const folder = join(parent, batch)
          const paths = [folder, ...(await readdir(folder).catch(absent([]))).map((name) => join(folder, name))]
          const [own, ...files] = await Promise.all(paths.map((path) => stat(path).catch(absent(null))))
          const newest = Math.max(...[own, ...files].map((one) => one?.mtimeMs ?? 0))
          if (now() - newest > MAX_AGE_MS) await rm(folder, { recursive: true, force: true })
          else bytes += files.reduce((sum, file) => sum + (file?.size ?? 0), 0)
        }
        const age = now() - ((await stat(parent).catch(absent(null)))?.mtimeMs ?? 0)
        // Refused unless it is empty.
        if (age > MAX_AGE_MS) await rmdir(parent).catch(() => undefined)
      }
      return bytes
    }
    let total = yield* Effect.promise(sweep)
    yield* Effect.forkScoped(
      Effect.schedule(
        Effect.promise(sweep).pipe(
          Effect.tap((bytes) =>
            Effect.sync(() => {
              total = bytes
            }),
          ),
          Effect.ignoreCause({ log: "Warn" }),
        ),
        Schedule.spaced(SWEEP_MS),
      ),
    )

    const write = async (upload: Upload, part: number, bytes: Uint8Array): Promise<void> => {
      const folder = folderOf(upload)
      const parent = join(root, upload.incarnation)
      const others = (await readdir(parent).catch(absent([]))).filter((name) => join(parent, name) !== folder)
      for (const other of others) await rm(join(parent, other), { recursive: true, force: true })
      await mkdir(folder, { recursive: true })
      const unfinished = join(folder, `${part}.new`)
      const file = await open(unfinished, "w")
      try {
        await file.writeFile(bytes)
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(unfinished, join(folder, String(part)))
      total += bytes.length
    }

    return {
      put: (upload, part, bytes) =>
        Effect.gen(function* () {
          if (total + bytes.length > MAX_UPLOADS_BYTES)
            return yield* new UploadsFull({ message: `unfinished uploads take ${total} bytes, the limit is ${MAX_UPLOADS_BYTES}` })
          yield* Effect.tryPromise({
            try: () => write(upload, part, bytes),
            catch: (cause) =>
              new UploadsFull({ message: `a part cannot be written to ${root}: ${cause instanceof Error ? cause.message : String(cause)}` }),
          })
        }),
      missing: (upload) =>
        Effect.map(
          Effect.promise(() => present(upload)),
          (here) => Array.from({ length: upload.parts }, (_, i) => i + 1).filter((part) => !here.has(part)),
        ),
      parts: (upload) =>
        Effect.promise(() => Promise.all(Array.from({ length: upload.parts }, (_, i) => readFile(join(folderOf(upload), String(i + 1)))))),
      drop: (upload) =>
        Effect.promise(async () => {
          const folder = folderOf(upload)
          for (const name of await readdir(folder).catch(absent([]))) total -= (await stat(join(folder, name)).catch(absent(null)))?.size ?? 0
          await rm(folder, { recursive: true, force: true })
        }),
    }
  })
