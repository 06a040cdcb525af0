/** `slots`: what every logical slot of the database holds back, from the hub, or from Postgres itself when the hub is down. */
import { ago } from "../status/check.ts"
import type { SlotHealth } from "../postgres/health.ts"
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input } from "./options.ts"
import { clean, green, red, sizeText, table, yellow } from "./text.ts"

const fromPostgres = async (input: Input): Promise<ReadonlyArray<SlotHealth>> => {
  const [{ withPostgres }, { readSlots }] = await Promise.all([import("./database.ts"), import("../postgres/health.ts")])
  return withPostgres(input, readSlots)
}

export const run = async (input: Input, io: Io): Promise<number> => {
  // An address on the command line means that hub; a database alone means Postgres itself.
  const direct = input.origin("database-url") !== "none" && input.origin("url") !== "flag"
  const items = direct ? await fromPostgres(input) : (await apiOf(input).get<{ readonly items: ReadonlyArray<SlotHealth> }>("/api/slots")).items
  if (input.flag("json")) {
    io.out(`${JSON.stringify({ schemaVersion: 1, asOf: new Date().toISOString(), items })}\n`)
    return EXIT.ok
  }
  if (items.length === 0) {
    io.out("This database has no logical slot; the hub makes its own when it starts.\n")
    return EXIT.ok
  }
  const status = (text: string | null) => (text === "reserved" ? text : text === "extended" ? yellow(io.look, text) : red(io.look, text ?? "-"))
  const used = ({ budgetUsed, stage }: SlotHealth) => {
    const text = `${budgetUsed} %`
    return stage === "ok" || stage === "making" ? text : stage === "warning" ? yellow(io.look, text) : red(io.look, text)
  }
  io.out(
    table(
      io.look,
      [
        { title: "Slot" },
        { title: "Active" },
        { title: "WAL" },
        { title: "Held back", right: true },
        { title: "Behind", right: true },
        { title: "Used", right: true },
        { title: "Room left", right: true },
        { title: "Time left", right: true },
      ],
      items.map((slot) => [
        clean(slot.slot),
        slot.stage === "making" ? yellow(io.look, "being made") : slot.active ? green(io.look, "yes") : red(io.look, "no"),
        status(slot.walStatus),
        sizeText(slot.retainedBytes),
        sizeText(slot.lagBytes),
        used(slot),
        slot.maxSlotWalKeepSize === "-1" ? "no limit" : sizeText(slot.safeWalBytes),
        slot.timeLeftSeconds === null ? "-" : ago(slot.timeLeftSeconds),
      ]),
    ),
  )
  for (const { slot, stage, advice, ...used } of items.filter(({ stage }) => stage !== "ok")) {
    const how = stage === "making" ? "being made" : `${stage}, ${used.budgetUsed} % of ${sizeText(used.budgetBytes)} used`
    io.err(`${clean(`${slot}: ${how}: ${advice}`)}\n`)
  }
  if (items.some((slot) => slot.maxSlotWalKeepSize === "-1")) {
    io.err(
      "max_slot_wal_keep_size is -1: a slot that nobody reads can fill the disk. ALTER SYSTEM SET max_slot_wal_keep_size = '4GB'; SELECT pg_reload_conf();\n",
    )
  }
  return EXIT.ok
}
