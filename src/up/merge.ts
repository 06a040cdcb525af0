/**
 * Two values of one column put together (pure). `sum`, `union` and `append` carry over what the school did to the value
 * it started from: the difference, the elements added and removed, the text that was added. `max` and `min` take one of
 * the two. Numbers are added exactly; an empty value counts as 0, as no elements, as an empty text.
 *
 *     rule     base    mine      theirs   result
 *     sum      10      13        15       18
 *     union    {a,b}   {a,c}     {a,b,d}  {a,d,c}
 *     append   "x"     "x, y"    "x, z"   "x, z, y"
 */
import type { Column, ColumnRule } from "../model/table.ts"
import type { Wire } from "../model/value.ts"

export type MergeRule = Extract<ColumnRule, "sum" | "max" | "min" | "union" | "append">

export const isMergeRule = (rule: ColumnRule): rule is MergeRule => ["sum", "max", "min", "union", "append"].includes(rule)
/** Rules that are applied to every change of the other side, also where both sides now hold the same value. */
export const isOwnBaseRule = (rule: ColumnRule): rule is MergeRule => rule === "sum" || rule === "union" || rule === "append"

export interface Values {
  readonly base: Wire
  readonly mine: Wire
  readonly theirs: Wire
  /** In Postgres' order of the column's type, mine stands after theirs. */
  readonly isMineGreater: boolean
}

/** undefined: these values cannot be put together by this rule. */
export const mergeValues = (rule: MergeRule, column: Pick<Column, "kind" | "type">, values: Values): Wire | undefined => {
  const { mine, theirs, isMineGreater } = values
  switch (rule) {
    case "max":
    case "min":
      if (mine === null || theirs === null) return mine ?? theirs
      return isMineGreater === (rule === "max") ? mine : theirs
    case "sum":
      return column.kind === "float" ? sumFloats(column.type, values) : sumExact(column.kind, values)
    case "union":
    case "append":
      return mergeLists(rule, column.type, values)
  }
}

interface Decimal {
  readonly units: bigint
  readonly scale: number
}

/** `"-1.50"` -> -150 at scale 2; null for NaN, infinities and what is no number. */
const decimalOf = (wire: Wire): Decimal | null => {
  if (wire === null) return { units: 0n, scale: 0 }
  const match = /^(-?\d+)(?:\.(\d+))?$/.exec(String(wire))
  if (match === null) return null
  const fraction = match[2] ?? ""
  return { units: BigInt(`${match[1]}${fraction}`), scale: fraction.length }
}

const printDecimal = ({ units, scale }: Decimal): string => {
  const digits = (units < 0n ? -units : units).toString().padStart(scale + 1, "0")
  const whole = scale === 0 ? digits : `${digits.slice(0, -scale)}.${digits.slice(-scale)}`
  return units < 0n ? `-${whole}` : whole
}

const sumExact = (kind: Column["kind"], { base, mine, theirs }: Values): Wire | undefined => {
  const all = [theirs, mine, base].map(decimalOf)
  if (all.some((one) => one === null)) return undefined
  const scale = Math.max(...all.map((one) => one?.scale ?? 0))
  const [a, b, c] = all.map((one) => (one?.units ?? 0n) * 10n ** BigInt(scale - (one?.scale ?? 0)))
  const text = printDecimal({ units: (a ?? 0n) + (b ?? 0n) - (c ?? 0n), scale })
  return kind === "int" ? Number(text) : text
}

const sumFloats = (type: string, { base, mine, theirs }: Values): Wire | undefined => {
  const [a, b, c] = [theirs, mine, base].map((wire) => (wire === null ? 0 : typeof wire === "number" ? wire : Number.NaN))
  const sum = (a ?? 0) + ((b ?? 0) - (c ?? 0))
  if (!Number.isFinite(sum)) return undefined
  return type === "real" ? Math.fround(sum) : sum
}

/** A list as its elements' own texts, and how they are written again. */
interface List {
  readonly elements: ReadonlyArray<string>
  readonly print: (elements: ReadonlyArray<string>) => string
}

const quoteElement = (text: string): string =>
  text === "" || /[{}",\\\s]/.test(text) || /^null$/i.test(text) ? `"${text.replace(/[\\"]/g, "\\$&")}"` : text

/** `{a,"b c",NULL}`; null for arrays of arrays and those that do not begin at 1. Elements keep their own spelling. */
const arrayOf = (text: string): List | null => {
  if (!/^\{.*\}$/s.test(text)) return null
  const print: List["print"] = (elements) => `{${elements.join(",")}}`
  const body = text.slice(1, -1)
  if (body === "") return { elements: [], print }
  const elements: Array<string> = []
  const pattern = /(?:"((?:[^"\\]|\\.)*)"|([^{}",\\]+))(?:,(?!$)|$)/sy
  while (pattern.lastIndex < body.length) {
    const match = pattern.exec(body)
    if (match === null) return null
    elements.push(match[1] === undefined ? (match[2] ?? "") : quoteElement(match[1].replace(/\\(.)/gs, "$1")))
  }
  return { elements, print }
}

/** The texts of a JSON array's elements as they stand, so that no number loses a digit. */
const jsonOf = (text: string): List | null => {
  try {
    if (!Array.isArray(JSON.parse(text))) return null
  } catch {
    return null
  }
  const elements: Array<string> = []
  let depth = 0
  let start = 0
  let isString = false
  for (let i = 0; i < text.length; i++) {
    const c = text[i]
    if (isString) {
      if (c === "\\") i++
      else if (c === '"') isString = false
      continue
    }
    if (c === '"') isString = true
    else if (c === "[" || c === "{") {
      if (++depth === 1) start = i + 1
    } else if ((c === "," && depth === 1) || ((c === "]" || c === "}") && --depth === 0)) {
      elements.push(text.slice(start, i).trim())
      start = i + 1
    }
  }
  return { elements: elements.filter((element) => element !== ""), print: (list) => `[${list.join(", ")}]` }
}

const commaOf = (text: string): List => ({
  elements: text
    .split(",")
    .map((element) => element.trim())
    .filter((element) => element !== ""),
  print: (elements) => elements.join(/,(?! )/.test(text) ? "," : ", "),
})

type Parse = (text: string) => List | null

/** How the column's lists are written: by its type; in a plain text by what stands there. */
const formOf = (type: string, values: ReadonlyArray<string>): Parse | "text" => {
  if (type.endsWith("[]")) return arrayOf
  if (type === "json" || type === "jsonb") return jsonOf
  return values.length > 0 && values.every((text) => text.startsWith("[") && jsonOf(text) !== null) ? jsonOf : "text"
}

const mergeLists = (rule: "union" | "append", type: string, { base, mine, theirs }: Values): Wire | undefined => {
  const texts = [base, mine, theirs].map((wire) => (wire === null ? null : String(wire)))
  const form = formOf(
    type,
    texts.filter((text) => text !== null),
  )
  if (form === "text" && rule === "append") return appendText(texts[0] ?? "", texts[1] ?? "", texts[2] ?? "")
  const parse: Parse = form === "text" ? commaOf : form
  const lists = texts.map((text) => (text === null ? { elements: [], print: null } : parse(text)))
  if (lists.some((list) => list === null)) return undefined
  const [before, own, office] = lists.map((list) => list?.elements ?? [])
  const print = lists[2]?.print ?? lists[1]?.print ?? lists[0]?.print
  if (before === undefined || own === undefined || office === undefined || print == null) return undefined
  return print(rule === "union" ? unite(before, own, office) : extend(before, own, office))
}

const unite = (before: ReadonlyArray<string>, own: ReadonlyArray<string>, office: ReadonlyArray<string>): ReadonlyArray<string> => {
  const kept = new Set(own)
  const removed = new Set(before.filter((element) => !kept.has(element)))
  const result = office.filter((element) => !removed.has(element))
  const present = new Set([...result, ...before.filter((element) => kept.has(element))])
  for (const element of own) {
    if (present.has(element)) continue
    present.add(element)
    result.push(element)
  }
  return result
}

/** What was rewritten instead of continued is appended whole: nothing that anyone wrote is lost. */
const extend = (before: ReadonlyArray<string>, own: ReadonlyArray<string>, office: ReadonlyArray<string>): ReadonlyArray<string> =>
  before.every((element, i) => own[i] === element) ? [...office, ...own.slice(before.length)] : [...office, ...own]

const appendText = (before: string, own: string, office: string): string => {
  if (own.startsWith(before)) return `${office}${own.slice(before.length)}`
  return office === "" || own === "" ? `${office}${own}` : `${office}\n${own}`
}
