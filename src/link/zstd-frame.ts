/** Where a zstd frame ends that was made in one go (pure): such a one tells how large its content is. RFC 8878, section 3.1.1. */

/** Content of a frame that is worth waiting for; a larger one is read as it comes. */
const MOST_BYTES = 256 * 1024
const CONTENT_SIZE_BYTES = [0, 2, 4, 8]
const DICTIONARY_BYTES = [0, 1, 2, 4]
/** A field of two bytes counts from here. */
const TWO_BYTE_OFFSET = 256

/**
 * How many bytes the frame at the beginning has, and its content. `more`: that cannot be told before more of it is here; `stream`: it
 * does not say how large it is, is too large, or is none: only a decompressor that takes it piece by piece can read it.
 */
export const frameAt = (bytes: Uint8Array): { readonly bytes: number; readonly content: number } | "more" | "stream" => {
  if (bytes.length < 5) return "more"
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (view.getUint32(0, true) !== 0xfd2fb528) return "stream"
  const descriptor = view.getUint8(4)
  const isSingle = (descriptor & 0x20) !== 0
  const sizeBytes = CONTENT_SIZE_BYTES[descriptor >> 6] || (isSingle ? 1 : 0)
  if (sizeBytes === 0 || sizeBytes === 8) return "stream"
  const sizeAt = 5 + (isSingle ? 0 : 1) + (DICTIONARY_BYTES[descriptor & 3] ?? 0)
  let at = sizeAt + sizeBytes
  if (bytes.length < at) return "more"
  const content =
    sizeBytes === 1 ? view.getUint8(sizeAt) : sizeBytes === 2 ? view.getUint16(sizeAt, true) + TWO_BYTE_OFFSET : view.getUint32(sizeAt, true)
  if (content > MOST_BYTES) return "stream"
  for (let isLast = false; !isLast; ) {
    if (bytes.length < at + 3) return "more"
    const block = view.getUint16(at, true) | (view.getUint8(at + 2) << 16)
    isLast = (block & 1) === 1
    const type = (block >> 1) & 3
    // One of repeated bytes holds one; the fourth type is none.
    if (type === 3) return "stream"
    at += 3 + (type === 1 ? 1 : block >> 3)
    // No frame is much larger than what it holds.
    if (at > 2 * MOST_BYTES) return "stream"
  }
  const end = at + ((descriptor & 4) === 0 ? 0 : 4)
  return bytes.length < end ? "more" : { bytes: end, content }
}
