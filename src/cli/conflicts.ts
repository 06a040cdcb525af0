/** `conflicts list | show | resolve | undo | auto-resolve`: what both sides wrote, and who decides. */
import { KEEPS, keepOf } from "../model/choice.ts"
import type { AutoResult, ConflictRecord, Page, Requested } from "../status/records.ts"
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input, usage } from "./options.ts"
import { bold, clean, dim, type Look, table } from "./text.ts"

export const short = (text: string | null, width: number): string => {
  const flat = clean(text ?? "(no row)")
  return flat.length > width ? `${flat.slice(0, width - 1)}…` : flat
}

export const requestText = (requested: Requested | null): string | null =>
  requested === null
    ? null
    : requested.status === "refused"
      ? `${requested.action} was refused: ${requested.message ?? ""}`
      : `${requested.action}${requested.choice === null ? "" : ` ${requested.choice}`} by ${requested.by} goes to head office with the next sync`

/** What a side has, as JSON; null: no row, which is not to be taken for a column's empty value. */
const sideOf = ({ column }: ConflictRecord, value: string | null): string | null => (column === null && value === "null" ? null : value)
/** Of two rows that want one value head office has one always. */
const officeOf = (c: ConflictRecord): string | null => (c.kind === "unique" && c.theirs === null ? UNSEEN : sideOf(c, c.theirs))
const UNSEEN = "(a row that the school does not see)"

export const showText = (look: Look, c: ConflictRecord): string => {
  const line = (label: string, value: string | null) => `${bold(look, label.padEnd(12))} ${clean(sideOf(c, value) ?? "(no row)")}\n`
  const optional = (label: string, value: string | null) => (value === null ? "" : line(label, value))
  const isUnique = c.kind === "unique"
  const choices = isUnique ? "rename_local|keep_local|keep_remote|merge|discard" : "school|vps|merge, or --value JSON"
  return [
    line("Conflict", c.id),
    line("Row", `${c.table} ${c.key}${c.column === null ? "" : `, column ${c.column}`}`),
    line("School", c.school),
    isUnique ? "" : line("Before", c.base),
    line("School has", c.mine),
    line("Office has", officeOf(c)),
    line("Kept", c.status === "open" ? "(waits for a decision)" : c.kept),
    line("Rule", `${c.strategy}: ${c.reason}`),
    line(
      "When",
      `${c.at}${c.decidedAt === null ? "" : `, ${c.status === "open" ? "taken back" : "decided"} ${c.decidedAt} by ${c.decidedBy ?? "-"}`}`,
    ),
    optional("Free value", c.suggestion),
    optional("Advice", c.recommendation === null ? null : `${c.recommendation.keep}: ${c.recommendation.why}`),
    optional("Asked for", requestText(c.requested)),
    dim(look, c.status === "open" ? `\nschoolbus conflicts resolve ${c.id} --keep ${choices}\n` : `\nschoolbus conflicts undo ${c.id}\n`),
  ].join("")
}

export const list = async (input: Input, io: Io): Promise<number> => {
  const query = new URLSearchParams()
  for (const name of ["table", "school", "cursor"]) {
    const value = input.textOr(name, null)
    if (value !== null) query.set(name, value)
  }
  const isAll = input.flag("all") || (input.flag("open") && input.flag("resolved"))
  if (!isAll) query.set("resolved", String(input.flag("resolved")))
  query.set("limit", String(input.number("limit")))
  const page = await apiOf(input).get<Page<ConflictRecord>>(`/api/sync/conflicts?${query}`)
  if (input.flag("json")) {
    io.out(`${JSON.stringify({ schemaVersion: 1, asOf: new Date().toISOString(), ...page })}\n`)
    return EXIT.ok
  }
  if (page.items.length === 0) io.out(isAll || input.flag("resolved") ? "No conflicts.\n" : "No conflict waits for a decision.\n")
  else {
    const columns = ["Id", "School", "Row", "Column", "School has", "Office has", "Status", "Advice"].map((title) => ({ title }))
    io.out(
      table(
        io.look,
        columns,
        page.items.map((c) => [
          c.id,
          clean(c.school),
          short(`${c.table} ${c.key}`, 50),
          clean(c.column ?? "(row)"),
          short(sideOf(c, c.mine), 24),
          short(officeOf(c), 24),
          c.requested?.status === "sent" ? "asked for" : c.status,
          c.recommendation === null ? "-" : `${c.recommendation.keep}${c.suggestion === null ? "" : ` ${clean(c.suggestion)}`}`,
        ]),
      ),
    )
    if (page.nextCursor !== null) io.err(`more: the same with --cursor ${page.nextCursor}\n`)
  }
  return EXIT.ok
}

export const show = async (input: Input, io: Io): Promise<number> => {
  const conflict = await apiOf(input).get<ConflictRecord>(`/api/sync/conflicts/${encodeURIComponent(input.args["id"] ?? "")}`)
  io.out(input.flag("json") ? `${JSON.stringify(conflict)}\n` : showText(io.look, conflict))
  return EXIT.ok
}

const jsonOf = (text: string, hint: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    throw usage(`${hint} is not JSON; a text needs its quotes: ${hint} '"0722 000 000"'`)
  }
}

export const resolve = async (input: Input, io: Io): Promise<number> => {
  const given = input.textOr("keep", null)
  const value = input.textOr("value", null)
  const keep = given === null ? null : keepOf(given)
  if (given !== null && keep === null) throw usage(`--keep must be one of ${KEEPS.filter((one) => one !== "value").join(", ")}, not ${given}`)
  if (keep === null && value === null) throw usage("conflicts resolve needs --keep school, --keep vps, or --value JSON")
  if (keep !== null && keep !== "value" && keep !== "rename_local" && value !== null) throw usage(`--keep ${keep} takes no --value`)
  const by = input.textOr("by", "cli")
  const body = { keep: keep ?? "value", ...(value === null ? {} : { value: jsonOf(value, "--value") }), by }
  return answerTo(input, io, "resolve", body)
}

const answerTo = async (input: Input, io: Io, action: string, body: object): Promise<number> => {
  const conflict = await apiOf(input).post<ConflictRecord>(`/api/sync/conflicts/${encodeURIComponent(input.args["id"] ?? "")}/${action}`, body)
  io.out(input.flag("json") ? `${JSON.stringify(conflict)}\n` : showText(io.look, conflict))
  return EXIT.ok
}

export const undo = (input: Input, io: Io): Promise<number> => answerTo(input, io, "undo", { by: input.textOr("by", "cli") })

export const autoResolve = async (input: Input, io: Io): Promise<number> => {
  const [table, school] = [input.textOr("table", null), input.textOr("school", null)]
  const body = { max: input.number("max"), by: "auto-resolve", ...(table === null ? {} : { table }), ...(school === null ? {} : { school }) }
  const result = await apiOf(input).post<AutoResult>("/api/sync/conflicts/auto-resolve", body)
  if (input.flag("json")) {
    io.out(`${JSON.stringify(result)}\n`)
    return EXIT.ok
  }
  for (const { id, keep, value, why } of result.resolved)
    io.out(`${id}  ${keep}${value === undefined ? "" : ` ${clean(JSON.stringify(value))}`}: ${clean(why)}\n`)
  for (const { id, why } of result.skipped) io.out(dim(io.look, `${id}  left: ${clean(why)}\n`))
  io.out(`${result.resolved.length} decided, ${result.skipped.length} left to a person.\n`)
  return EXIT.ok
}
