/** `check`: one line in the form that Nagios and its relatives read. Whatever goes wrong is UNKNOWN, never OK. */
import { type CheckId, checkOf, DEFAULT_BOUNDS, exitOf, nagiosLine } from "../status/check.ts"
import type { Snapshot } from "../status/snapshot.ts"
import { apiOf } from "./api.ts"
import { CHECKS } from "./commands/watching.ts"
import type { Io } from "./io.ts"
import { CommandFailed, type Input } from "./options.ts"

/** What the command itself prints when it cannot even ask. */
export const unknownLine = (json: boolean, message: string): string =>
  json ? `${JSON.stringify({ schemaVersion: 1, level: "UNKNOWN", message, checks: [] })}\n` : `${nagiosLine("UNKNOWN", message)}\n`

/** What bounds that would be ignored, or could never be met, are answered with; null = they can be taken. */
const refusalOfBounds = (only: string, warning: number | undefined, critical: number | undefined): string | null =>
  !(only in DEFAULT_BOUNDS) && (warning !== undefined || critical !== undefined)
    ? `check ${only} takes no --warning or --critical; ${Object.keys(DEFAULT_BOUNDS).join(", ")} do`
    : warning !== undefined && critical !== undefined && warning > critical
      ? `--warning ${warning} is more than --critical ${critical}`
      : null

export const run = async (input: Input, io: Io): Promise<number> => {
  const json = input.flag("json")
  const only = input.args["what"]
  if (only !== undefined && !CHECKS.includes(only as CheckId)) {
    io.out(unknownLine(json, `no check "${only}"; there are ${CHECKS.join(", ")}`))
    return exitOf.UNKNOWN
  }
  const warning = input.numberOr("warning", undefined)
  const critical = input.numberOr("critical", undefined)
  if (only === undefined && (warning !== undefined || critical !== undefined)) {
    io.out(unknownLine(json, "--warning and --critical need a single check, e.g. check lag --warning 600"))
    return exitOf.UNKNOWN
  }
  const refusal = only === undefined ? null : refusalOfBounds(only, warning, critical)
  if (refusal !== null) {
    io.out(unknownLine(json, refusal))
    return exitOf.UNKNOWN
  }
  try {
    const school = input.textOr("school", null)
    const snapshot = await apiOf(input).get<Snapshot>(`/api/sync/status${school === null ? "" : `?school=${encodeURIComponent(school)}`}`)
    const checked = checkOf(snapshot, only as CheckId | undefined, {
      ...(warning === undefined ? {} : { warning }),
      ...(critical === undefined ? {} : { critical }),
    })
    io.out(
      json
        ? `${JSON.stringify({ schemaVersion: 1, asOf: snapshot.asOf, role: snapshot.role, level: checked.level, line: checked.line, checks: checked.items })}\n`
        : `${checked.line}\n`,
    )
    return exitOf[checked.level]
  } catch (cause) {
    io.out(unknownLine(json, cause instanceof CommandFailed ? cause.message : "the node's answer cannot be read; is it another version?"))
    return exitOf.UNKNOWN
  }
}
