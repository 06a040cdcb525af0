/** How a terminal wants to be spoken to, from what is known of it (pure). */
import { utcToWall } from "./clock.ts"
import { capabilityOf, type CardForm, type Dialect } from "./command.ts"
import type { Device } from "./device.ts"

export const unsupportedOf = (device: Device): ReadonlySet<string> => new Set(device.unsupported.split(",").filter((name) => name !== ""))
export const knows = (device: Device, command: string): boolean => !unsupportedOf(device).has(capabilityOf(command))

/** As the terminal itself writes cards; else old firmware, which names no protocol version, reads brackets only. */
const cardFormOf = (device: Device): CardForm => device.card_form ?? (device.push_version === null ? "bracket" : "decimal")

export const dialectOf = (device: Device, now: number): Dialect => ({
  family: device.family,
  cardForm: cardFormOf(device),
  unsupported: unsupportedOf(device),
  wall: utcToWall(now, device.zone),
  utc: utcToWall(now, "UTC"),
})
