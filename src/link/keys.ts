/**
 * School keys: `sb_<id>_<secret>_<crc>`. The id finds the key's row, the secret is 256 random bits of which head office
 * keeps only the SHA-256, the checksum tells a mistyped key before anybody asks the hub. Plain functions.
 */
import { hash, timingSafeEqual } from "node:crypto"
import { crc32 } from "node:zlib"

const ID_BYTES = 6
const SECRET_BYTES = 32
/** Random bytes that one key takes. */
export const KEY_BYTES = ID_BYTES + SECRET_BYTES

export interface NewKey {
  /** 12 hex digits; may be shown anywhere. */
  readonly id: string
  /** The key as it is handed to the school, once. */
  readonly text: string
  /** SHA-256 of the secret, hex: what the hub keeps. */
  readonly hash: string
}

export interface ParsedKey {
  readonly id: string
  readonly secret: string
}

/** Hex only, so that a double click takes a key whole. */
const FORM = /^(sb_([0-9a-f]{12})_([0-9a-f]{64}))_([0-9a-f]{8})$/

const checksum = (text: string): string => crc32(text).toString(16).padStart(8, "0")

export const hashOf = (secret: string): string => hash("sha256", secret, "hex")

/** `random`: at least `KEY_BYTES` bytes of a cryptographic source. */
export const newKey = (random: Uint8Array = crypto.getRandomValues(new Uint8Array(KEY_BYTES))): NewKey => {
  if (random.length < KEY_BYTES) throw new RangeError(`a school key takes ${KEY_BYTES} random bytes, got ${random.length}`)
  const hex = Buffer.from(random.subarray(0, KEY_BYTES)).toString("hex")
  const id = hex.slice(0, ID_BYTES * 2)
  const secret = hex.slice(ID_BYTES * 2)
  const body = `sb_${id}_${secret}`
  return { id, text: `${body}_${checksum(body)}`, hash: hashOf(secret) }
}

/** null: not a school key, or one with a typing error. */
export const parseKey = (text: string): ParsedKey | null => {
  const [, body, id, secret, sum] = FORM.exec(text.trim()) ?? []
  if (body === undefined || id === undefined || secret === undefined || checksum(body) !== sum) return null
  return { id, secret }
}

const NO_KEY = hash("sha256", "no such key", "buffer")

/** Takes the same time whatever is wrong. */
export const keyMatches = (secret: string, wanted: string): boolean => {
  const shown = hash("sha256", secret, "buffer")
  const kept = Buffer.from(NO_KEY)
  const isHash = /^[0-9a-f]{64}$/.test(wanted)
  if (isHash) kept.write(wanted, "hex")
  return timingSafeEqual(shown, kept) && isHash
}
