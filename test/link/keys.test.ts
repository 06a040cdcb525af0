import { expect, it } from "vitest"
import { KEY_BYTES, hashOf, keyMatches, newKey, parseKey } from "../../src/link/keys.ts"

it("reads back the key it made", () => {
  const key = newKey(new Uint8Array(KEY_BYTES).fill(7))
  expect(key.text).toBe(`sb_070707070707_${"07".repeat(32)}_${key.text.slice(-8)}`)
  const parsed = parseKey(` ${key.text}\n`)
  expect(parsed?.id).toBe(key.id)
  expect(keyMatches(parsed?.secret ?? "", key.hash)).toBe(true)
})

it("never makes the same key twice", () => {
  expect(new Set(Array.from({ length: 50 }, () => newKey().text)).size).toBe(50)
})

it("takes no key from too little randomness", () => {
  expect(() => newKey(new Uint8Array(10))).toThrow(RangeError)
})

it("notices every single mistyped digit", () => {
  const { text } = newKey(new Uint8Array(KEY_BYTES).fill(171))
  for (let i = 0; i < text.length; i++) {
    const other = text[i] === "1" ? "2" : "1"
    expect(parseKey(text.slice(0, i) + other + text.slice(i + 1))).toBeNull()
  }
})

it("refuses what is no key at all", () => {
  for (const text of ["", "sb_", "Bearer x", newKey().text.slice(0, -1), `${newKey().text}0`, newKey().text.toUpperCase()])
    expect(parseKey(text)).toBeNull()
})

it("matches only the secret that belongs to the hash", () => {
  expect(keyMatches("a", hashOf("a"))).toBe(true)
  expect(keyMatches("a", hashOf("b"))).toBe(false)
  for (const hash of ["", "xyz", hashOf("no such key").slice(1)]) expect(keyMatches("no such key", hash)).toBe(false)
  expect(keyMatches("no such key", "")).toBe(false)
})
