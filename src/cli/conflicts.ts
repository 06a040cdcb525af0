/** `conflicts list | show | resolve`: what both sides wrote, and who decides. */
import type { ConflictRecord, Page } from "../status/records.ts"
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input, usage } from "./options.ts"
import { bold, clean, dim, type Look, table } from "./text.ts"

const short = (text: string | null, width: number): string => {
  const flat = clean(text ?? "(no row)")
  return flat.length > width ? `${flat.slice(0, width - 1)}…` : flat
}

const showText = (look: Look, c: ConflictRecord): string => {
  const line = (label: string, value: string | null) => `${bold(look, label.padEnd(12))} ${clean(value ?? "(no row)")}\n`
  return [
    line("Conflict", c.id),
    line("Row", `${c.table} ${c.key}${c.column === null ? "" : `, column ${c.column}`}`),
    line("School", c.school),
    line("Before", c.base),
    line("School has", c.mine),
    line("Office has", c.theirs),
    line("Kept", c.status === "open" ? "(waits for a decision)" : c.kept),
    line("Rule", `${c.strategy}: ${c.reason}`),
    line("When", `${c.at}${c.decidedAt === null ? "" : `, decided ${c.decidedAt} by ${c.decidedBy ?? "-"}`}`),
    c.status === "open" ? dim(look, `\nschoolbus conflicts resolve ${c.id} --keep school|vps, or --value JSON\n`) : "",
  ].join("")
}

export const list = async (input: Input, io: Io): Promise<number> => {
  const query = new URLSearchParams()
  for (const name of ["table", "school", "cursor"]) {
    const value = input.textOr(name, null)
    if (value !== null) query.set(name, value)
  }
  if (!input.flag("all")) query.set("resolved", "false")
  query.set("limit", String(input.number("limit")))
  const page = await apiOf(input).get<Page<ConflictRecord>>(`/api/sync/conflicts?${query}`)
  if (input.flag("json")) {
    io.out(`${JSON.stringify({ schemaVersion: 1, asOf: new Date().toISOString(), ...page })}\n`)
    return EXIT.ok
  }
  if (page.items.length === 0) io.out(input.flag("all") ? "No conflicts.\n" : "No conflict waits for a decision.\n")
  else {
    const columns = ["Id", "School", "Row", "Column", "School has", "Office has", "Status"].map((title) => ({ title }))
    io.out(
      table(
        io.look,
        columns,
        page.items.map((c) => [
          c.id,
          clean(c.school),
          short(`${c.table} ${c.key}`, 50),
          clean(c.column ?? "(row)"),
          short(c.mine, 24),
          short(c.theirs, 24),
          c.status,
        ]),
      ),
    )
    if (page.nextCursor !== null) io.err(`more: schoolbus conflicts list --cursor ${page.nextCursor}\n`)
  }
  return EXIT.ok
}

export const show = async (input: Input, io: Io): Promise<number> => {
  const conflict = await apiOf(input).get<ConflictRecord>(`/api/sync/conflicts/${encodeURIComponent(input.args["id"] ?? "")}`)
  io.out(input.flag("json") ? `${JSON.stringify(conflict)}\n` : showText(io.look, conflict))
  return EXIT.ok
}

export const resolve = async (input: Input, io: Io): Promise<number> => {
  const keep = input.textOr("keep", null)
  const value = input.textOr("value", null)
  if ((keep === null) === (value === null)) throw usage("conflicts resolve needs --keep school, --keep vps, or --value JSON")
  if (keep !== null && keep !== "school" && keep !== "vps") throw usage(`--keep must be school or vps, not ${keep}`)
  let given: unknown
  try {
    given = value === null ? undefined : JSON.parse(value)
  } catch {
    throw usage("--value is not JSON; a text needs its quotes: --value '\"0722 000 000\"'")
  }
  const by = input.textOr("by", "cli")
  const body = keep === null ? { keep: "value", value: given, by } : { keep, by }
  const conflict = await apiOf(input).post<ConflictRecord>(`/api/sync/conflicts/${encodeURIComponent(input.args["id"] ?? "")}/resolve`, body)
  io.out(input.flag("json") ? `${JSON.stringify(conflict)}\n` : showText(io.look, conflict))
  return EXIT.ok
}
