"""What notices say. Like invoices they are in the customer's language, not in that of whoever sends them."""

from collections.abc import Mapping

# kind -> subject, body. Names in braces are the facts of `telling`.
WORDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "en": {
        "runway_week": (
            "{organization}: your money lasts for less than a week",
            "At {burn} an hour what you have lasts until {until}. After that what runs is stopped, not deleted.\n"
            "What to do: add credit, or stop what you do not need.",
        ),
        "runway_day": (
            "{organization}: your money lasts for less than a day",
            "At {burn} an hour what you have lasts until {until}. After that what runs is stopped, not deleted.\n"
            "What to do: add credit, or stop what you do not need.",
        ),
        "runway_hour": (
            "{organization}: your money lasts for less than an hour",
            "At {burn} an hour what you have lasts until {until}. After that what runs is stopped, not deleted.\n"
            "What to do: add credit now, or save your work and stop what you do not need.",
        ),
        "used_up": (
            "{organization}: your money is used up",
            "What runs is stopped at {stops_at}, not deleted; what is used until then is owed.\n"
            "Volumes are kept for 14 days after that, and charged as owed.\n"
            "What to do: add credit, and start again what was stopped.",
        ),
        "volumes_kept": (
            "{organization}: your volumes are kept until {until}",
            "Your money is used up. {count} volumes ({gib} GiB together) are kept until {until} and then deleted.\n"
            "What to do: add credit before then; nothing is lost.",
        ),
        "volumes_soon": (
            "{organization}: your volumes are deleted at {until}",
            "Your money is used up. {count} volumes ({gib} GiB together) are deleted at {until}.\n"
            "What to do: add credit before then; nothing is lost. This is the last call.",
        ),
        "volumes_deleted": (
            "{organization}: the volume {name} is being deleted",
            "Nobody paid for the volume {name} ({gib} GiB), so its deletion has begun.\n"
            "Until {until} it can be restored.\n"
            "What to do: add credit and restore it.",
        ),
    },
    "ja": {
        "runway_week": (
            "{organization}：残高は1週間以内になくなります",
            "1時間あたり{burn}のご利用では、残高は{until}までです。その後、実行中のものは停止します（削除はしません）。\n"
            "対応：クレジットを追加するか、不要なものを停止してください。",
        ),
        "runway_day": (
            "{organization}：残高は1日以内になくなります",
            "1時間あたり{burn}のご利用では、残高は{until}までです。その後、実行中のものは停止します（削除はしません）。\n"
            "対応：クレジットを追加するか、不要なものを停止してください。",
        ),
        "runway_hour": (
            "{organization}：残高は1時間以内になくなります",
            "1時間あたり{burn}のご利用では、残高は{until}までです。その後、実行中のものは停止します（削除はしません）。\n"
            "対応：今すぐクレジットを追加するか、作業を保存して不要なものを停止してください。",
        ),
        "used_up": (
            "{organization}：残高がなくなりました",
            "実行中のものは{stops_at}に停止します（削除はしません）。それまでのご利用分は未払いとなります。\n"
            "ボリュームはその後14日間保管し、料金は未払いとして計上します。\n"
            "対応：クレジットを追加し、停止したものを再び開始してください。",
        ),
        "volumes_kept": (
            "{organization}：ボリュームは{until}まで保管します",
            "残高がなくなりました。ボリューム{count}個（合計{gib} GiB）を{until}まで保管し、その後削除します。\n"
            "対応：それまでにクレジットを追加してください。データは失われません。",
        ),
        "volumes_soon": (
            "{organization}：ボリュームを{until}に削除します",
            "残高がなくなっています。ボリューム{count}個（合計{gib} GiB）を{until}に削除します。\n"
            "対応：それまでにクレジットを追加してください。データは失われません。これが最後のお知らせです。",
        ),
        "volumes_deleted": (
            "{organization}：ボリューム{name}の削除を開始しました",
            "ボリューム{name}（{gib} GiB）の料金が支払われないため、削除を開始しました。{until}までは復元できます。\n"
            "対応：クレジットを追加して復元してください。",
        ),
    },
}
HELLO = {"en": "Hello,", "ja": "お客様各位"}
ONLINE = {"en": "Balance, and what happens next: {url}", "ja": "残高と今後の予定：{url}"}
