/** The options reply that a terminal asks for first (pure). Field by field as `device/README.md` lists them. */
import { zoneNumber } from "./clock.ts"

export interface HandshakeDevice {
  readonly serial: string
  readonly zone: string
  readonly attStamp: string
  readonly opStamp: string
}

/** Seconds between two polls of a healthy terminal; its heartbeat. */
export const POLL_SECONDS = 10

export const handshakeReply = (device: HandshakeDevice, now: number): string =>
  [
    `GET OPTION FROM: ${device.serial}`,
    `Stamp=${device.attStamp}`,
    `OpStamp=${device.opStamp}`,
    "PhotoStamp=0",
    `ATTLOGStamp=${device.attStamp}`,
    `OPERLOGStamp=${device.opStamp}`,
    "ATTPHOTOStamp=0",
    "ErrorDelay=30",
    `Delay=${POLL_SECONDS}`,
    "TransTimes=00:00;14:05",
    "TransInterval=1",
    // Biometric templates are not asked for: they stay on the terminal.
    "TransFlag=TransData AttLog\tOpLog\tEnrollUser\tChgUser",
    `TimeZone=${zoneNumber(device.zone, now)}`,
    "Realtime=1",
    "Encrypt=0",
    "ServerVer=2.4.1",
    "PushProtVer=2.4.1",
    "PushOptionsFlag=1",
    // The last line is terminated too: some firmware handles a line only when it meets its end.
    "",
  ].join("\n")
