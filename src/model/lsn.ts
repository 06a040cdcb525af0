/**
 * A 64-bit WAL position. Held as bigint, printed as Postgres does: `"16/B374D848"`.
 * Commit order is the order of commit LSNs; the LSN of a row says nothing about it.
 */
export type Lsn = bigint

/** `"16/B374D848"` -> 97500059720n. Throws on anything else: a position that cannot be read must never become 0. */
export const parseLsn = (text: string): Lsn => {
  const match = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/.exec(text)
  if (match === null) throw new TypeError(`not a WAL position: ${JSON.stringify(text)}`)
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`)
}

/** 97500059720n -> `"16/B374D848"`. */
export const printLsn = (lsn: Lsn): string => `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffff_ffffn).toString(16).toUpperCase()}`
