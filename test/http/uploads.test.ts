import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { afterEach, expect, it } from "vitest"
import { MAX_UPLOADS_BYTES, openUploads, type Upload, type Uploads } from "../../src/http/uploads.ts"

const folders: Array<string> = []
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true })
})

const newFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), "schoolbus-uploads-"))
  folders.push(folder)
  return join(folder, "uploads")
}
const using = <A, E>(root: string, body: (uploads: Uploads) => Effect.Effect<A, E>, now?: () => number): Promise<A> =>
  Effect.runPromise(Effect.scoped(Effect.flatMap(openUploads(root, now), body)))

const upload: Upload = { incarnation: crypto.randomUUID(), batch: 3, hash: "ab".repeat(32), size: 10, parts: 3 }
const bytes = (text: string) => new TextEncoder().encode(text)

it("keeps parts over a restart, and gives them back in order", async () => {
  const root = newFolder()
  expect(await using(root, (uploads) => Effect.andThen(uploads.put(upload, 3, bytes("c")), uploads.missing(upload)))).toEqual([1, 2])
  await using(root, (uploads) => Effect.andThen(uploads.put(upload, 1, bytes("a")), uploads.put(upload, 2, bytes("b"))))
  const parts = await using(root, (uploads) => Effect.andThen(uploads.missing(upload), uploads.parts(upload)))
  expect(parts.map((part) => new TextDecoder().decode(part))).toEqual(["a", "b", "c"])
  await using(root, (uploads) => uploads.drop(upload))
  expect(await using(root, (uploads) => uploads.missing(upload))).toEqual([1, 2, 3])
})

it("a part that is half written does not count", async () => {
  const root = newFolder()
  await using(root, (uploads) => uploads.put(upload, 1, bytes("a")))
  const folder = join(root, upload.incarnation, readdirSync(join(root, upload.incarnation))[0] ?? "")
  expect(readdirSync(folder)).toEqual(["1"])
})

it("of one file only the batch under way is kept, whatever the way it was cut", async () => {
  const root = newFolder()
  const others: ReadonlyArray<Upload> = [
    { ...upload, parts: 4 },
    { ...upload, batch: 4 },
    { ...upload, hash: "cd".repeat(32) },
  ]
  for (const other of others) {
    await using(root, (uploads) => Effect.andThen(uploads.put(upload, 1, bytes("a")), uploads.put(other, 1, bytes("b"))))
    expect(await using(root, (uploads) => uploads.missing(upload))).toEqual([1, 2, 3])
  }
  const elsewhere = { ...upload, incarnation: crypto.randomUUID() }
  await using(root, (uploads) => Effect.andThen(uploads.put(upload, 1, bytes("a")), uploads.put(elsewhere, 1, bytes("b"))))
  expect(await using(root, (uploads) => uploads.missing(upload))).toEqual([2, 3])
})

it("what nobody finished in a week is removed", async () => {
  const root = newFolder()
  await using(root, (uploads) => uploads.put(upload, 1, bytes("a")))
  await using(
    root,
    () => Effect.void,
    () => Date.now() + 6 * 86_400_000,
  )
  expect(existsSync(join(root, upload.incarnation))).toBe(true)
  await using(
    root,
    () => Effect.void,
    () => Date.now() + 8 * 86_400_000,
  )
  expect(existsSync(root) && readdirSync(root, { recursive: true }).filter((name) => String(name).endsWith("1"))).toEqual([])
})

it("takes no more than the disk is given for", async () => {
  const huge = { length: MAX_UPLOADS_BYTES + 1 } as Uint8Array
  const result = await using(newFolder(), (uploads) => Effect.result(uploads.put(upload, 1, huge)))
  expect(result._tag === "Failure" && result.failure.message).toContain("the limit is")
})
