export const worker = "not a default export"
