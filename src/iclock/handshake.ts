/** The options reply that a terminal asks for first (pure). Field by field as `device/README.md` lists them. */
import { zoneNumber } from "./clock.ts"

export interface HandshakeDevice {
  readonly serial: string
  readonly zone: string
  readonly att_stamp: string
  readonly op_stamp: string
  readonly model: string | null
  readonly firmware: string | null
}

/** Firmware that reads `TransFlag` as digits only: the words would switch every upload off. */
export const readsDigitsOnly = ({ model, firmware }: Pick<HandshakeDevice, "model" | "firmware">): boolean =>
  /\b(LX35|AK3750)/i.test(`${model ?? ""} ${firmware ?? ""}`)

/** Seconds between two polls of a healthy terminal; its heartbeat. */
export const POLL_SECONDS = 10
/** Seconds that a terminal waits after a failed exchange. */
export const ERROR_SECONDS = 30

export const handshakeReply = (device: HandshakeDevice, now: number): string =>
  [
    `GET OPTION FROM: ${device.serial}`,
    `Stamp=${device.att_stamp}`,
    `OpStamp=${device.op_stamp}`,
    "PhotoStamp=0",
    `ATTLOGStamp=${device.att_stamp}`,
    `OPERLOGStamp=${device.op_stamp}`,
    "ATTPHOTOStamp=0",
    `ErrorDelay=${ERROR_SECONDS}`,
    `Delay=${POLL_SECONDS}`,
    "TransTimes=00:00;14:05",
    "TransInterval=1",
    // Biometric templates are not asked for: they stay on the terminal.
    readsDigitsOnly(device) ? "TransFlag=1100101000" : "TransFlag=TransData AttLog\tOpLog\tEnrollUser\tChgUser",
    `TimeZone=${zoneNumber(device.zone, now)}`,
    "Realtime=1",
    "Encrypt=0",
    "ServerVer=2.4.1",
    "PushProtVer=2.4.1",
    "PushOptionsFlag=1",
    // The last line is terminated too: some firmware handles a line only when it meets its end.
    "",
  ].join("\n")

/** Options of 3.x access-control terminals, at `push` and in the handshake of one that has registered. */
export const accessOptions = (serial: string): string =>
  [
    "ServerVersion=3.1.2",
    "ServerName=schoolbus",
    "PushVersion=3.1.2",
    `ErrorDelay=${ERROR_SECONDS}`,
    `RequestDelay=${POLL_SECONDS}`,
    "TransTimes=00:00;14:05",
    "TransInterval=1",
    "TransTables=User Transaction",
    "Realtime=1",
    `SessionID=${serial.slice(0, 32)}`,
    "TimeoutSec=10",
    "",
  ].join("\n")

export const registryCode = (serial: string): string => `RegistryCode=${serial.slice(0, 32)}`
