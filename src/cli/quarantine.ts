/** `quarantine list | show | retry | edit | discard`: changes that could not be written. */
import type { QuarantineRecord } from "../status/quarantine.ts"
import type { Page } from "../status/records.ts"
import { apiOf } from "./api.ts"
import { requestText, short } from "./conflicts.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input, usage } from "./options.ts"
import { bold, clean, dim, type Look, table } from "./text.ts"

const changeText = (json: string): string => {
  try {
    const change = JSON.parse(json) as { mine?: unknown; base?: unknown }
    return JSON.stringify(change.mine ?? change)
  } catch {
    return json
  }
}

const showText = (look: Look, q: QuarantineRecord): string => {
  const line = (label: string, value: string) => `${bold(look, label.padEnd(12))} ${clean(value)}\n`
  const asked = requestText(q.requested)
  return [
    line("Change", q.id),
    line("Row", `${q.table} ${q.key}`),
    line("School", q.school),
    line(q.op === "" ? "Line" : q.op, changeText(q.change)),
    line("Reason", `${q.reason}: ${q.detail}`),
    line("When", `${q.at}${q.decidedAt === null ? "" : `, ${q.status} ${q.decidedAt} by ${q.decidedBy ?? "-"}`}`),
    asked === null ? "" : line("Asked for", asked),
    q.status === "open" ? dim(look, `\nschoolbus quarantine retry|discard ${q.id}, or edit ${q.id} --set '{"column": "value"}'\n`) : "",
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
  const page = await apiOf(input).get<Page<QuarantineRecord>>(`/api/sync/quarantine?${query}`)
  if (input.flag("json")) {
    io.out(`${JSON.stringify({ schemaVersion: 1, asOf: new Date().toISOString(), ...page })}\n`)
    return EXIT.ok
  }
  if (page.items.length === 0) io.out(input.flag("all") ? "No quarantined changes.\n" : "No change waits in quarantine.\n")
  else {
    io.out(
      table(
        io.look,
        ["Id", "School", "Row", "Change", "Reason", "Status"].map((title) => ({ title })),
        page.items.map((q) => [
          q.id,
          clean(q.school),
          short(`${q.table} ${q.key}`, 50),
          short(`${q.op} ${changeText(q.change)}`, 40),
          short(`${q.reason}: ${q.detail}`, 60),
          q.requested?.status === "sent" ? "asked for" : q.status,
        ]),
      ),
    )
    if (page.nextCursor !== null) io.err(`more: schoolbus quarantine list --cursor ${page.nextCursor}\n`)
  }
  return EXIT.ok
}

const pathOf = (input: Input): string => `/api/sync/quarantine/${encodeURIComponent(input.args["id"] ?? "")}`
const out = (input: Input, io: Io, record: QuarantineRecord): number => {
  io.out(input.flag("json") ? `${JSON.stringify(record)}\n` : showText(io.look, record))
  return EXIT.ok
}

export const show = async (input: Input, io: Io): Promise<number> => out(input, io, await apiOf(input).get<QuarantineRecord>(pathOf(input)))

const decide =
  (action: "retry" | "discard") =>
  async (input: Input, io: Io): Promise<number> =>
    out(input, io, await apiOf(input).post<QuarantineRecord>(`${pathOf(input)}/${action}`, { by: input.textOr("by", "cli") }))
export const retry = decide("retry")
export const discard = decide("discard")

export const edit = async (input: Input, io: Io): Promise<number> => {
  let values: unknown
  try {
    values = JSON.parse(input.text("set"))
  } catch {
    values = null
  }
  if (typeof values !== "object" || values === null || Array.isArray(values))
    throw usage(`--set must be JSON: values by column, as '{"username": "amina2"}'`)
  return out(input, io, await apiOf(input).post<QuarantineRecord>(`${pathOf(input)}/edit`, { values, by: input.textOr("by", "cli") }))
}
