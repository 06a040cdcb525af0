/** `quarantine list | show | retry | edit | discard`: changes that could not be written. */
import type { QuarantinePage, QuarantineRecord } from "../status/quarantine.ts"
import { apiOf } from "./api.ts"
import { requestText, short } from "./conflicts.ts"
import type { Io } from "./io.ts"
import { confirm } from "./confirm.ts"
import { CommandFailed, EXIT, type Input, usage } from "./options.ts"
import { bold, clean, dim, countText, type Look, table } from "./text.ts"

const FILTERS = ["table", "reason", "school"]

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
    q.conflict === null ? "" : line("Conflict", `${q.conflict}, by which it is decided: schoolbus conflicts show ${q.conflict}`),
    q.status === "open" ? dim(look, `\nschoolbus quarantine retry|discard ${q.id}, or edit ${q.id} --set '{"column": "value"}'\n`) : "",
  ].join("")
}

const queryOf = (input: Input, names: ReadonlyArray<string>): URLSearchParams => {
  const query = new URLSearchParams()
  for (const name of names) {
    const value = input.textOr(name, null)
    if (value !== null) query.set(name, value)
  }
  return query
}

export const list = async (input: Input, io: Io): Promise<number> => {
  const query = queryOf(input, [...FILTERS, "cursor"])
  if (!input.flag("all")) query.set("resolved", "false")
  query.set("limit", String(input.number("limit")))
  const page = await apiOf(input).get<QuarantinePage>(`/api/sync/quarantine?${query}`)
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
          q.requested?.status === "sent" ? "asked for" : q.conflict !== null ? "conflict" : q.status,
        ]),
      ),
    )
    if (page.nextCursor !== null) io.err(`more: the same with --cursor ${page.nextCursor}\n`)
  }
  if (page.inConflicts > 0) {
    const [waits, stand] = page.inConflicts === 1 ? ["1 change waits", "stands"] : [`${countText(page.inConflicts)} changes wait`, "stand"]
    io.err(`${waits} for another unique value and ${stand} among the conflicts: schoolbus conflicts list\n`)
  }
  return EXIT.ok
}

const pathOf = (input: Input): string => `/api/sync/quarantine/${encodeURIComponent(input.args["id"] ?? "")}`
const out = (input: Input, io: Io, record: QuarantineRecord): number => {
  io.out(input.flag("json") ? `${JSON.stringify(record)}\n` : showText(io.look, record))
  return EXIT.ok
}

export const show = async (input: Input, io: Io): Promise<number> => out(input, io, await apiOf(input).get<QuarantineRecord>(pathOf(input)))

/** Most that one page may have. */
const PAGE = 500

/** Every change that waits and that the filters name, oldest first: what others refer to comes before them. */
const waiting = async (input: Input): Promise<ReadonlyArray<QuarantineRecord>> => {
  const api = apiOf(input)
  const found: Array<QuarantineRecord> = []
  for (let cursor: string | null = ""; cursor !== null; ) {
    const query = queryOf(input, FILTERS)
    query.set("resolved", "false")
    query.set("limit", String(PAGE))
    if (cursor !== "") query.set("cursor", cursor)
    const page: QuarantinePage = await api.get<QuarantinePage>(`/api/sync/quarantine?${query}`)
    found.push(...page.items)
    cursor = page.nextCursor
  }
  return found.filter(({ requested }) => requested?.status !== "sent").reverse()
}

interface Left {
  readonly id: string
  readonly why: string
}

const PROGRESS_WIDTH = 40
const DONE = { retry: "retried", discard: "discarded" }

/** Each by itself, so that one that is refused keeps none of the others; again, as long as one more goes. */
const decideMany = async (input: Input, io: Io, action: "retry" | "discard"): Promise<number> => {
  const api = apiOf(input)
  const by = input.textOr("by", "cli")
  let todo = await waiting(input)
  const schools = new Set(todo.map(({ school }) => school)).size
  const changes = todo.length === 1 ? "1 change" : `${countText(todo.length)} changes`
  if (action === "discard" && todo.length > 0)
    await confirm(input, io, `${changes} of ${schools === 1 ? "1 school" : `${schools} schools`} will be given up`, String(todo.length))
  const done: Array<string> = []
  let asked = 0
  let left: Array<Left> = []
  // A person who waits sees that it moves; the line is written over.
  const say = (text: string) => (io.interactive ? io.err(`\r${text.padEnd(PROGRESS_WIDTH)}${text === "" ? "\r" : ""}`) : undefined)
  for (let before = -1; before < done.length; ) {
    before = done.length
    left = []
    for (const [n, { id }] of todo.entries()) {
      if (n % 20 === 0) say(`${countText(n)} of ${countText(todo.length)}`)
      try {
        const record = await api.post<QuarantineRecord>(`/api/sync/quarantine/${id}/${action}`, { by })
        if (record.status === "open") asked++
        done.push(id)
      } catch (cause) {
        if (!(cause instanceof CommandFailed)) throw cause
        // It went along with another one.
        if (cause.code === "change_decided") done.push(id)
        else if (cause.code === "change_not_possible" || cause.code === "change_not_found") left.push({ id, why: cause.message })
        else {
          say("")
          throw new CommandFailed(
            cause.exit,
            cause.code,
            `${cause.message}; of ${changes}, ${countText(done.length)} were ${DONE[action]} before`,
            cause.hint,
          )
        }
      }
    }
    todo = todo.filter(({ id }) => left.some((one) => one.id === id))
  }
  say("")
  if (input.flag("json")) io.out(`${JSON.stringify({ done, left })}\n`)
  else {
    for (const { id, why } of left) io.out(dim(io.look, `${id}  left: ${clean(why)}\n`))
    const went =
      asked > 0 ? `${countText(done.length)} asked for; they go to head office with the next sync` : `${countText(done.length)} ${DONE[action]}`
    io.out(`${went}, ${countText(left.length)} left.\n`)
  }
  return left.length === 0 ? EXIT.ok : EXIT.failed
}

const decide =
  (action: "retry" | "discard") =>
  async (input: Input, io: Io): Promise<number> => {
    const id = input.args["id"]
    // What stands in the environment narrows many; it does not ask for them.
    const isMany = [...FILTERS, "all"].some((name) => input.origin(name) === "flag")
    if (id === undefined ? !isMany : isMany)
      throw usage(`quarantine ${action} takes the ID of one change, or for many --table, --reason, --school or --all`, "schoolbus quarantine list")
    if (id === undefined) return decideMany(input, io, action)
    return out(input, io, await apiOf(input).post<QuarantineRecord>(`${pathOf(input)}/${action}`, { by: input.textOr("by", "cli") }))
  }
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
