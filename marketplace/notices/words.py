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
        "due_soon": (
            "{organization}: invoice {number} is due on {due_at}",
            "{left} of invoice {number} is due on {due_at}.{then}\n"
            "What to do: pay it by card on its page, or by bank transfer with its number.",
        ),
        "past_due": (
            "{organization}: invoice {number} is past due",
            "{left} of invoice {number} was due on {due_at} and was not paid.{then}\n"
            "What to do: pay it by card on its page, or by bank transfer with its number.",
        ),
        "due_restricted": (
            "{organization}: nothing new starts until invoice {number} is paid",
            "{left} of invoice {number} was due on {due_at}. Nothing new starts from now on; what runs goes on.{then}\n"
            "What to do: pay it; everything is as before at once.",
        ),
        "due_spot_stopped": (
            "{organization}: what runs on spot is being stopped",
            "{left} of invoice {number} was due on {due_at}. What runs on spot is being stopped, not deleted.{then}\n"
            "What to do: pay it and start again what was stopped.",
        ),
        "due_stopped": (
            "{organization}: what runs is being stopped",
            "{left} of invoice {number} was due on {due_at}. What runs is being stopped, not deleted.\n"
            "Volumes are kept for 14 days and then deleted.{then}\n"
            "What to do: pay it and start again what was stopped.",
        ),
        "due_written_off": (
            "{organization}: invoice {number} is given up",
            "{left} of invoice {number} was due on {due_at} and was never paid.\n"
            "We have written it off, and nothing starts.\n"
            "What to do: pay it by card on its page, or by bank transfer with its number.\n"
            "That opens your account again.",
        ),
        "charge_failed": (
            "{organization}: the charge for invoice {number} failed",
            "{left} for invoice {number} could not be charged to your card. The bank says: {why}\n"
            "What to do: pay with another card on its page, or by bank transfer with its number.",
        ),
        "charge_needs_you": (
            "{organization}: your bank wants to hear from you about invoice {number}",
            "{left} for invoice {number} is not charged yet: your bank wants you to confirm it.\n"
            "What to do: confirm it on the page of the payment {payment}.",
        ),
        "dispute_upheld": (
            "{organization}: you are right about invoice {number}",
            "We agree about {left} of invoice {number}: {answer} A credit note follows.\n"
            "What to do: nothing. Nobody asks for this amount.",
        ),
        "dispute_rejected": (
            "{organization}: we do not agree about invoice {number}",
            "We looked at {left} of invoice {number} that you disputed: {answer} The amount is due again.\n"
            "What to do: pay it, or answer this message.",
        ),
        "payment_needs_you": (
            "{organization}: your bank wants to hear from you about a top-up",
            "The automatic top-up of {left} is not charged yet: your bank wants you to confirm it.\n"
            "What to do: confirm it within seven days on {page}; after that it is given up and nothing is charged.",
        ),
        "top_up_paused": (
            "{organization}: automatic top-up is paused",
            "The top-up of {left} could not be charged, and we do not ask your bank again by ourselves. {why}\n"
            "Nothing was charged, and your money may run out.\n"
            "What to do: see to your card on the page Payment methods, then save automatic top-up again.",
        ),
        "credit_expires": (
            "{organization}: {left} of credit ends at {until}",
            "Of the credit “{reason}” {left} is left. What is not used by {until} is gone then.\n"
            "What to do: nothing, or use it before. Credit that ends first is used first, before your money.",
        ),
        "payment_taken_back": (
            "{organization}: your bank took {left} back",
            "Your bank took back {left} of the payment {payment}: from your cash, and what was not there is owed.\n"
            "Automatic top-up is paused, and this card is not charged for invoices by itself any more.\n"
            "What to do: add credit. If you did not mean this, tell your bank; what comes back is yours again.",
        ),
        "invoice_owed_again": (
            "{organization}: invoice {number} is owed again",
            "Your bank took back the payment {payment}, so {left} of invoice {number} is not paid any more.\n"
            "Automatic top-up is paused, and this card is not charged for invoices by itself any more.\n"
            "What to do: pay it on its page, or by bank transfer with its number. If it is wrong, dispute it there.\n"
            "If you did not mean this, tell your bank; what comes back pays it.",
        ),
        "taken_back_due": (
            "{organization}: {left} that your bank took back is past due",
            "Your bank took back the payment {payment}; {left} of it was due on {due_at} and was not paid.{did}{then}\n"
            "What to do: add credit, by card or bank transfer; everything is as before at once.",
        ),
        "commitment_offered": (
            "{organization}: a commitment is offered to you",
            "We offer a commitment of {left} to you, at prices of its own. Nothing is promised until you accept it.\n"
            "What to do: read it on the page Commitments and accept or refuse it before {until}, when it begins.",
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
        "due_soon": (
            "{organization}：請求書{number}の支払期限は{due_at}です",
            "請求書{number}の未払額{left}の支払期限は{due_at}です。{then}\n"
            "対応：請求書のページでカードで支払うか、請求書番号を記して銀行振込でお支払いください。",
        ),
        "past_due": (
            "{organization}：請求書{number}の支払期限が過ぎました",
            "請求書{number}の未払額{left}（期限{due_at}）のお支払いを確認できません。{then}\n"
            "対応：請求書のページでカードで支払うか、請求書番号を記して銀行振込でお支払いください。",
        ),
        "due_restricted": (
            "{organization}：請求書{number}の支払いまで新しく開始できません",
            "請求書{number}の未払額{left}（期限{due_at}）があるため、新しく開始できません。実行中のものは続きます。{then}\n"
            "対応：お支払いいただくと、すぐに元どおりになります。",
        ),
        "due_spot_stopped": (
            "{organization}：スポットで実行中のものを停止します",
            "請求書{number}の未払額{left}（期限{due_at}）があるため、スポットで実行中のものを停止します（削除はしません）。{then}\n"
            "対応：お支払いのうえ、停止したものを再び開始してください。",
        ),
        "due_stopped": (
            "{organization}：実行中のものを停止します",
            "請求書{number}の未払額{left}（期限{due_at}）があるため、実行中のものを停止します（削除はしません）。\n"
            "ボリュームは14日間保管し、その後削除します。{then}\n"
            "対応：お支払いのうえ、停止したものを再び開始してください。",
        ),
        "due_written_off": (
            "{organization}：請求書{number}を貸倒れとしました",
            "請求書{number}の{left}（期限{due_at}）は支払われませんでした。貸倒れとし、新しく開始できません。\n"
            "対応：請求書のページでカードで支払うか、請求書番号を記して銀行振込でお支払いいただくと、再びご利用いただけます。",
        ),
        "charge_failed": (
            "{organization}：請求書{number}のカード決済に失敗しました",
            "請求書{number}の{left}をカードに請求できませんでした。銀行の回答：{why}\n"
            "対応：請求書のページで別のカードで支払うか、請求書番号を記して銀行振込でお支払いください。",
        ),
        "charge_needs_you": (
            "{organization}：請求書{number}の決済に確認が必要です",
            "請求書{number}の{left}はまだ決済されていません。銀行がご本人の確認を求めています。\n"
            "対応：決済{payment}のページで確認してください。",
        ),
        "dispute_upheld": (
            "{organization}：請求書{number}のご指摘を認めます",
            "請求書{number}の{left}についてご指摘のとおりです：{answer} 返還請求書をお送りします。\n"
            "対応：必要ありません。この金額は請求しません。",
        ),
        "dispute_rejected": (
            "{organization}：請求書{number}のご指摘への回答",
            "請求書{number}の{left}のご指摘を調べました：{answer} この金額は再び請求の対象です。\n"
            "対応：お支払いいただくか、このメールにご返信ください。",
        ),
        "payment_needs_you": (
            "{organization}：自動チャージの決済に確認が必要です",
            "自動チャージ{left}はまだ決済されていません。銀行がご本人の確認を求めています。\n"
            "対応：7日以内に{page}で確認してください。それを過ぎると取り消され、請求はされません。",
        ),
        "top_up_paused": (
            "{organization}：自動チャージを一時停止しました",
            "チャージ{left}をカードに請求できなかったため、自動での再請求は行いません。{why}\n"
            "請求はされていません。このままでは残高がなくなる可能性があります。\n"
            "対応：「お支払い方法」のページでカードを確認し、自動チャージをもう一度保存してください。",
        ),
        "credit_expires": (
            "{organization}：クレジット{left}の期限は{until}です",
            "クレジット「{reason}」の残りは{left}です。{until}までに使われない分は失効します。\n"
            "対応：必要ありません。期限の近いクレジットから、現金より先に使われます。",
        ),
        "payment_taken_back": (
            "{organization}：銀行が{left}のお支払いを取り消しました",
            "お支払い{payment}のうち{left}を銀行が取り消しました。現金残高から差し引き、不足分は未払いとなります。\n"
            "自動チャージを一時停止し、このカードへの請求書の自動請求も行いません。\n"
            "対応：クレジットを追加してください。お心当たりがない場合は銀行にご連絡ください（戻った金額はお客様のものです）。",
        ),
        "invoice_owed_again": (
            "{organization}：請求書{number}は再び未払いです",
            "お支払い{payment}を銀行が取り消したため、請求書{number}のうち{left}が未払いに戻りました。\n"
            "自動チャージを一時停止し、このカードへの請求書の自動請求も行いません。\n"
            "対応：請求書のページで支払うか、請求書番号を記して銀行振込でお支払いください。誤りがあれば同じページでお申し出ください。\n"
            "お心当たりがない場合は銀行にご連絡ください（戻った金額は請求書に充てます）。",
        ),
        "taken_back_due": (
            "{organization}：銀行が取り消した{left}の支払期限が過ぎました",
            "お支払い{payment}を銀行が取り消しました。そのうち{left}（期限{due_at}）のお支払いを確認できません。{did}{then}\n"
            "対応：カードまたは銀行振込でクレジットを追加してください。すぐに元どおりになります。",
        ),
        "commitment_offered": (
            "{organization}：利用契約のご提案",
            "{left}の利用契約を個別の単価でご提案します。承諾いただくまで契約は成立しません。\n"
            "対応：開始日時{until}までに「利用契約」のページで内容を確認し、承諾または辞退してください。",
        ),
    },
}
HELLO = {"en": "Hello,", "ja": "お客様各位"}
ONLINE = {"en": "Balance, and what happens next: {url}", "ja": "残高と今後の予定：{url}"}
# What follows if an invoice stays unpaid, as a sentence; by the next step's action.
THEN: Mapping[str, Mapping[str, str]] = {
    "en": {
        "restrict": " If it stays unpaid, nothing new starts from {next_at} on.",
        "stop_spot": " If it stays unpaid, what runs on spot is stopped at {next_at}.",
        "stop_on_demand": " If it stays unpaid, what runs is stopped at {next_at}.",
        "write_off": " If it stays unpaid, we give it up at {next_at}.",
    },
    "ja": {
        "restrict": "お支払いがない場合、{next_at}から新しく開始できなくなります。",
        "stop_spot": "お支払いがない場合、{next_at}にスポットで実行中のものを停止します。",
        "stop_on_demand": "お支払いがない場合、{next_at}に実行中のものを停止します。",
        "write_off": "お支払いがない場合、{next_at}に貸倒れとします。",
    },
}
# What happens now because of something that was not paid, as a sentence; by the step's action.
DID: Mapping[str, Mapping[str, str]] = {
    "en": {
        "restrict": " Nothing new starts from now on; what runs goes on.",
        "stop_spot": " What runs on spot is being stopped, not deleted.",
        "stop_on_demand": " What runs is being stopped, not deleted. Volumes are kept for 14 days and then deleted.",
    },
    "ja": {
        "restrict": "そのため、新しく開始できません。実行中のものは続きます。",
        "stop_spot": "そのため、スポットで実行中のものを停止します（削除はしません）。",
        "stop_on_demand": "そのため、実行中のものを停止します（削除はしません）。ボリュームは14日間の保管後に削除。",
    },
}
