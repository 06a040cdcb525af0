/** Defaults as Postgres prints them: which a school's file can compute as well, and which a program there must give (pure). */
import type { ComputedDefault, Table } from "../model/table.ts"

const MOMENT = /^(?:now|clock_timestamp|statement_timestamp|transaction_timestamp)\(\)$|^(?:CURRENT_TIMESTAMP|LOCALTIMESTAMP)(?:\(\d\))?$/
const CLOCK = /^(?:CURRENT_TIME|LOCALTIME)(?:\(\d\))?$/
const UTC = /^timezone\('(?:utc|gmt|etc\/utc)'::text, (.+)\)$|^(.+) AT TIME ZONE '(?:utc|gmt|etc\/utc)'::text$/i
const UUID4 = /^(?:"?[\w$]+"?\.)?(?:gen_random_uuid|uuid_generate_v4|uuidv4)\(\)$/
const UUID7 = /^(?:"?[\w$]+"?\.)?(?:uuidv7|uuid_generate_v7)\(\)$/

/** Names in casts, as `format_type` prints them. */
const CASTS: Readonly<Record<string, string>> = {
  "timestamp with time zone": "timestamptz",
  "timestamp without time zone": "timestamp",
  "time with time zone": "timetz",
  "time without time zone": "time",
  "character varying": "varchar",
  character: "bpchar",
}

/** `"((now())::date)"` -> `"now()"`, with the types that it is cast to. */
const unwrapped = (expression: string): { readonly inner: string; readonly casts: ReadonlyArray<string> } => {
  const casts: Array<string> = []
  for (let inner = expression.trim(); ; ) {
    const cast = /^\((.*)\)::([a-z ]+?)(\(\d+\))?([a-z ]*)$/.exec(inner)
    const bare = cast === null && inner.startsWith("(") && inner.endsWith(")") ? inner.slice(1, -1) : null
    const next = cast?.[1] ?? bare
    // Parentheses that belong to two parts: (a) + (b).
    if (next == null || !isBalanced(next)) return { inner, casts }
    if (cast !== null) {
      const name = `${cast[2]}${cast[4]}`.trim()
      casts.push(CASTS[name] ?? name)
    }
    inner = next
  }
}

const isBalanced = (text: string): boolean => {
  let depth = 0
  for (const char of text) {
    if (char === "(") depth++
    else if (char === ")" && --depth < 0) return false
  }
  return depth === 0
}

const MOMENTS = new Set(["timestamptz", "timestamp", "date", "time", "timetz"])
const TEXTS = new Set(["text", "varchar", "bpchar"])

/** `base`: name of the column's type, of a domain that of its base; `type`: as `format_type` prints it. null: only Postgres can. */
export const computedDefault = (expression: string, base: string, type: string): ComputedDefault | null => {
  const { inner, casts } = unwrapped(expression)
  if (UUID4.test(inner) || UUID7.test(inner)) {
    const isCast = base === "uuid" ? casts.length === 0 : TEXTS.has(base) && casts.every((cast) => TEXTS.has(cast))
    return isCast ? { value: UUID4.test(inner) ? "uuid4" : "uuid7" } : null
  }
  if (!MOMENTS.has(base) || casts.some((cast) => cast !== base)) return null
  const as = base as "timestamptz" | "timestamp" | "date" | "time" | "timetz"
  const digits = Number(/\((\d)\)/.exec(type)?.[1] ?? 6)
  const utc = UTC.exec(inner)
  if (utc !== null)
    return MOMENT.test(unwrapped(utc[1] ?? utc[2] ?? "").inner) && as !== "timestamptz" && as !== "timetz" ? { value: "utc", as, digits } : null
  if (inner === "CURRENT_DATE" || inner === "'now'::text") return as === "date" ? { value: "now", as, digits } : null
  if (CLOCK.test(inner)) return as === "time" || as === "timetz" ? { value: "now", as, digits } : null
  return MOMENT.test(inner) ? { value: "now", as, digits } : null
}

/** Columns that Postgres fills in by itself and a school's file cannot: where schools insert, their programs must give a value. */
export const mustGive = (table: Table, filledByPostgres: ReadonlySet<string>): ReadonlyArray<string> =>
  table.system || table.direction === "down" || table.insert === "vps"
    ? []
    : table.columns.flatMap((column) => {
        const hasOwn = column.generated || (column.default ?? null) !== null || column.computed !== undefined
        const isRanged = table.keyRange === true && column.name === table.key[0]
        return column.notNull && filledByPostgres.has(column.name) && !hasOwn && !isRanged ? [column.name] : []
      })
