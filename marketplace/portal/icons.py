"""The pictures beside words, as the inner part of a 24 x 24 outline drawing. Never the only sign of anything."""

ICONS = {
    "alert": '<path d="M12 3.5 2.5 20h19L12 3.5Z"/><path d="M12 10v4.5"/><path d="M12 17.2v.3"/>',
    "arrow": '<path d="M4 12h15"/><path d="m13 6 6 6-6 6"/>',
    "box": '<path d="M12 3 4 7.500v9l8 4.500 8-4.500v-9Z"/><path d="m4 7.500 8 4.500 8-4.500M12 12v9"/>',
    "building": '<path d="M5 21V4h9v17"/><path d="M14 10h5v11"/><path d="M3 21h18"/><path d="M8.5 8h2"/>'
    '<path d="M8.5 12h2"/><path d="M8.5 16h2"/>',
    "calendar": '<rect x="3.5" y="5" width="17" height="15.5" rx="1.5"/><path d="M3.5 10h17M8 3v4M16 3v4"/>',
    "check": '<path d="m4.5 12.5 5 5 10-11"/>',
    "chip": '<rect x="6" y="6" width="12" height="12" rx="2"/><rect x="10" y="10" width="4" height="4"/>'
    '<path d="M9 2.5V6M15 2.5V6M9 18v3.5M15 18v3.5M2.5 9H6M2.5 15H6M18 9h3.5M18 15h3.5"/>',
    "chevron": '<path d="m6 9 6 6 6-6"/>',
    "clock": '<circle cx="12" cy="12" r="9"/><path d="M12 7v5.2l3.4 2"/>',
    "console": '<path d="M4 20V10M10 20V4M16 20v-7M21 20H3"/>',
    "copy": '<rect x="8.5" y="8.5" width="11" height="11" rx="2"/><path d="M5.5 15.5H5a1.5 1.5 0 0 1-1.5-1.5V5'
    'A1.5 1.5 0 0 1 5 3.5h9A1.5 1.5 0 0 1 15.5 5v.5"/>',
    "cross": '<path d="m6 6 12 12M18 6 6 18"/>',
    "display": '<circle cx="12" cy="12" r="8.5"/><path d="M12 3.5a8.5 8.5 0 0 1 0 17Z" fill="currentColor"/>',
    "download": '<path d="M12 3.5v12"/><path d="m7 11 5 5 5-5"/><path d="M4 20.5h16"/>',
    "folder": '<path d="M3 6.5A1.5 1.5 0 0 1 4.5 5H9l2.2 2.5h8.3A1.5 1.5 0 0 1 21 9v8.5a1.5 1.5 0 0 1-1.5 1.5h-15'
    'A1.5 1.5 0 0 1 3 17.5Z"/>',
    "globe": '<circle cx="12" cy="12" r="9"/><path d="M3 12h18"/>'
    '<path d="M12 3c3 3.2 3 14.8 0 18-3-3.2-3-14.8 0-18Z"/>',
    "help": '<circle cx="12" cy="12" r="9"/><path d="M9.2 9.5a2.9 2.9 0 1 1 4.1 2.7c-.9.4-1.3 1-1.3 1.8"/>'
    '<path d="M12 17v.3"/>',
    "home": '<path d="m3.5 11.5 8.5-8 8.5 8"/><path d="M6 9.5V20h12V9.5"/><path d="M10 20v-5.5h4V20"/>',
    "info": '<circle cx="12" cy="12" r="9"/><path d="M12 11v5.5"/><path d="M12 7.4v.3"/>',
    "key": '<circle cx="8" cy="15.5" r="4.5"/><path d="m11.3 12.2 8.2-8.2"/><path d="m16 7.5 3 3"/>',
    "leaf": '<path d="M5 19c0-9 5-14 15-14 0 10-5 15-13 13"/><path d="M5 21c1-5 4-9 9-11"/>',
    "list": '<path d="M8.5 6h12M8.5 12h12M8.5 18h12M4 6h.3M4 12h.3M4 18h.3"/>',
    "loader": '<path d="M12 3v4M12 17v4M3 12h4M17 12h4M5.6 5.6l2.9 2.9M15.5 15.5l2.9 2.9M18.4 5.6l-2.9 2.9M8.5 15.5'
    'l-2.9 2.9"/>',
    "menu": '<path d="M4 7h16M4 12h16M4 17h16"/>',
    "minus": '<path d="M6 12h12"/>',
    "pause": '<path d="M8.5 5v14M15.5 5v14"/>',
    "pencil": '<path d="M4 20h4L19.5 8.5a2.1 2.1 0 0 0 0-3l-1-1a2.1 2.1 0 0 0-3 0L4 16Z"/>',
    "pin": '<path d="M12 21.5s7-6.4 7-11.8a7 7 0 1 0-14 0c0 5.4 7 11.8 7 11.8Z"/><circle cx="12" cy="9.7" r="2.4"/>',
    "play": '<path d="M7 4.5 19.5 12 7 19.5Z"/>',
    "plus": '<path d="M12 5v14M5 12h14"/>',
    "receipt": '<path d="M5.5 3v18l2.2-1.6L9.8 21l2.2-1.6L14.2 21l2.1-1.600L18.5 21V3Z"/><path d="M9 8h6M9 12h6"/>',
    "server": '<rect x="3.5" y="4" width="17" height="7" rx="1.5"/><rect x="3.5" y="13" width="17" height="7" '
    'rx="1.5"/><path d="M7 7.500h.3M7 16.500h.3"/>',
    "stop": '<rect x="6" y="6" width="12" height="12" rx="1.5"/>',
    "tag": '<path d="M3.5 12.500V4.500a1 1 0 0 1 1-1h8l8 8a1.4 1.4 0 0 1 0 2l-7 7a1.4 1.4 0 0 1-2 0Z"/>'
    '<path d="M8 8h.3"/>',
    "terminal": '<rect x="3" y="4.5" width="18" height="15" rx="2"/><path d="m7 9.5 3 2.5-3 2.500M12.5 15h4"/>',
    "trash": '<path d="M4 6.500h16M9 6.500V4h6v2.500M6 6.500l1 14h10l1-14M10 10.500v6M14 10.500v6"/>',
    "user": '<circle cx="12" cy="8" r="4"/><path d="M4.5 20.500a7.5 7.5 0 0 1 15 0"/>',
    "users": '<circle cx="9" cy="8" r="3.5"/><path d="M2.5 20a6.5 6.5 0 0 1 13 0"/>'
    '<path d="M15.5 4.800a3.5 3.5 0 0 1 0 6.400M18 14.300a6.5 6.5 0 0 1 3.5 5.7"/>',
    "wallet": '<path d="M18 7V5a1.5 1.5 0 0 0-1.5-1.500H5A1.5 1.5 0 0 0 3.5 5v13A2 2 0 0 0 5.5 20H19a1.5 '
    '1.5 0 0 0 1.5-1.500v-10A1.5 1.5 0 0 0 19 7H5"/><path d="M16.5 13.500h.3"/>',
}
