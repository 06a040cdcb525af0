/**
 * One value in its four forms, converted without loss or refused:
 * - **text**: what Postgres prints under the pinned session settings (`"1.50"`, `"t"`, `"\x00ff"`);
 * - **token**: the JSON text of the wire and of the feed (`"1.50"` quoted, `true`, `"00ff"`);
 * - **wire**: that token parsed;
 * - **cell**: what libSQL stores (INTEGER as bigint, REAL as number, TEXT as string, BLOB as bytes).
 */

/** How a Postgres type travels. Domains count as their base type; every type not named here is `text`. */
export type Kind = "int" | "bigint" | "numeric" | "float" | "bool" | "bytea" | "text"

export type Wire = null | boolean | number | string
export type Cell = null | bigint | number | string | Uint8Array

/** A value that cannot travel: the reason in words, and its bytes as hex so that nothing is lost. */
export interface Refused {
  readonly refused: string
  readonly hex: string
}

export const isRefused = (value: Wire | Refused): value is Refused => typeof value === "object" && value !== null

const kindByType: Readonly<Record<string, Kind>> = {
  int2: "int",
  int4: "int",
  int8: "bigint",
  oid: "bigint",
  numeric: "numeric",
  float4: "float",
  float8: "float",
  bool: "bool",
  bytea: "bytea",
}

/** `pg_type.typname` of a base type -> how it travels. */
export const kindOf = (typname: string): Kind => kindByType[typname] ?? "text"

/** The column type in the school's file. Never exactly `INTEGER`: a key of that type is the rowid and would number itself. */
export const sqliteType = (kind: Kind): string =>
  ({ int: "INT", bigint: "BIGINT", numeric: "TEXT", float: "REAL", bool: "INT", bytea: "BLOB", text: "TEXT" })[kind]

/** Postgres text -> JSON token, the same bytes that the stream's decoder makes of it. */
export const textToToken = (kind: Kind, text: string | null): string => {
  if (text === null) return "null"
  switch (kind) {
    case "int":
      return text
    case "float":
      return text === "NaN" || text === "Infinity" || text === "-Infinity" ? `"${text}"` : text
    case "bool":
      return text === "t" || text === "true" ? "true" : "false"
    case "bytea":
      return `"${text.startsWith("\\x") ? text.slice(2) : text}"`
    case "bigint":
    case "numeric":
      return `"${text}"`
    case "text":
      return JSON.stringify(text)
  }
}

/** Wire -> the text that Postgres reads back to the same value. */
export const wireToText = (kind: Kind, wire: Wire): string | null => {
  if (wire === null) return null
  if (kind === "bytea") return `\\x${wire}`
  if (typeof wire === "boolean") return wire ? "t" : "f"
  return String(wire)
}

/** Wire -> cell. Input comes from the hub, whose values are well formed; a malformed one throws. */
export const wireToCell = (kind: Kind, wire: Wire): Cell => {
  if (wire === null) return null
  switch (kind) {
    case "int":
    case "bigint":
      return BigInt(wire)
    case "bool":
      return wire === true ? 1n : 0n
    case "float":
      return typeof wire === "number" ? wire : String(wire)
    case "bytea":
      return hexToBytes(String(wire))
    case "numeric":
    case "text":
      return String(wire)
  }
}

export const hexToBytes = (hex: string): Uint8Array => {
  if (hex.length % 2 !== 0 || /[^0-9a-fA-F]/.test(hex)) throw new TypeError(`not hex: ${JSON.stringify(hex.slice(0, 40))}`)
  return new Uint8Array(Buffer.from(hex, "hex"))
}

export const bytesToHex = (bytes: Uint8Array): string => {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex")
}

const utf8 = new TextEncoder()
const refuse = (reason: string, cell: Cell): Refused => ({
  refused: reason,
  hex: bytesToHex(cell instanceof Uint8Array ? cell : utf8.encode(String(cell))),
})

/** Cell that a school program wrote -> wire, or the reason why Postgres could not hold it as this kind. */
export const cellToWire = (kind: Kind, cell: Cell): Wire | Refused => {
  if (cell === null) return null
  if (typeof cell === "string" && cell.includes("\0")) return refuse("text contains a NUL character, which Postgres cannot store", cell)
  switch (kind) {
    case "int":
    case "bigint": {
      // A token must hold it exactly; Postgres judges the narrower range of smallint.
      if (typeof cell === "bigint" && kind === "int" && cell !== BigInt.asIntN(32, cell))
        return refuse("whole number beyond the range of integer", cell)
      if (typeof cell === "bigint") return kind === "int" ? Number(cell) : cell.toString()
      return refuse(`${typeName(cell)} in a whole-number column`, cell)
    }
    case "bool":
      if (cell === 0n || cell === 1n) return cell === 1n
      return refuse(`${typeName(cell)} in a true/false column; 0 and 1 are allowed`, cell)
    case "float":
      if (typeof cell === "bigint") return Number(cell)
      if (typeof cell === "number") return Number.isFinite(cell) ? cell : cell > 0 ? "Infinity" : "-Infinity"
      if (cell === "NaN" || cell === "Infinity" || cell === "-Infinity") return cell
      return refuse(`${typeName(cell)} in a floating-point column`, cell)
    case "bytea":
      if (cell instanceof Uint8Array) return bytesToHex(cell)
      return refuse(`${typeName(cell)} in a binary column`, cell)
    case "numeric":
    case "text":
      if (cell instanceof Uint8Array) return refuse("BLOB in a text column", cell)
      return String(cell)
  }
}

const typeName = (cell: Exclude<Cell, null>): string =>
  cell instanceof Uint8Array ? "BLOB" : typeof cell === "bigint" ? "INTEGER" : typeof cell === "number" ? "REAL" : "TEXT"
