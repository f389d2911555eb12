"""The routes of /api/v1. Ids have one shape; anything else in their place is no route, so 404."""

from django.urls import path, register_converter

from marketplace.api import (
    artifacts,
    budgets,
    catalogue,
    claims,
    commitments,
    contracts,
    costs,
    events,
    guarantees,
    idle,
    instances,
    invoices,
    jobs,
    owing,
    payments,
    placements,
    quotas,
    receipts,
    registries,
    resale,
    reservations,
    revenue,
    sla,
    spot,
    supplier,
    telemetry,
    tenants,
    till,
    volumes,
)


class PublicIdConverter:
    """`ins_` and 20 lower-case base32 characters; a slug of an offer fits `slug` instead."""

    regex = "[a-z]{3}_[a-z2-7]{20}"

    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return value


class IndexConverter:
    """The index of a task, from 0, as large as a column takes at most."""

    regex = "[0-9]{1,9}"

    def to_python(self, value: str) -> int:
        return int(value)

    def to_url(self, value: int) -> str:
        return str(value)


class DigestConverter(PublicIdConverter):
    """A SHA-256 in hexadecimal."""

    regex = "[0-9a-f]{64}"


register_converter(PublicIdConverter, "id")
register_converter(IndexConverter, "task")
register_converter(DigestConverter, "sha256")

urlpatterns = [
    path("me", tenants.Me.as_view()),
    path("offers", catalogue.OfferList.as_view()),
    path("offers/<slug:offer_id>", catalogue.OfferDetail.as_view()),
    path("offers/<slug:offer_id>/spot", spot.OfferSpot.as_view()),
    path("offers/<slug:offer_id>/spot/history", spot.OfferSpotHistory.as_view()),
    path("offers/<slug:offer_id>/spot/auctions", spot.OfferAuctions.as_view()),
    path("offers/<slug:offer_id>/spot/auctions/<id:auction_id>", spot.OfferAuction.as_view()),
    path("receipts", receipts.ReceiptList.as_view()),
    path("receipts/chain", receipts.ReceiptChain.as_view()),
    path("receipts/head", receipts.ReceiptHead.as_view()),
    path("receipts/<id:receipt_id>", receipts.ReceiptDetail.as_view()),
    path("keys", receipts.KeyList.as_view()),
    path("events", events.EventFeed.as_view()),
    path("webhooks", events.WebhookList.as_view()),
    path("webhooks/<id:webhook_id>", events.WebhookDetail.as_view()),
    path("webhooks/<id:webhook_id>/rotate", events.WebhookRotate.as_view()),
    path("webhooks/<id:webhook_id>/test", events.WebhookTest.as_view()),
    path("webhooks/<id:webhook_id>/replay", events.WebhookReplay.as_view()),
    path("webhooks/<id:webhook_id>/deliveries", events.WebhookDeliveries.as_view()),
    path("webhook-deliveries/<id:delivery_id>/resend", events.WebhookDeliveryAgain.as_view()),
    path("bids", spot.BidList.as_view()),
    path("bids/<id:bid_id>", spot.BidDetail.as_view()),
    path("bids/<id:bid_id>/price", spot.BidPrice.as_view()),
    path("bids/<id:bid_id>/withdraw", spot.BidWithdraw.as_view()),
    path("sites", catalogue.SiteList.as_view()),
    path("instances", instances.InstanceList.as_view()),
    path("instances/<id:instance_id>", instances.InstanceDetail.as_view()),
    path("instances/<id:instance_id>/start", instances.InstanceStart.as_view()),
    path("instances/<id:instance_id>/stop", instances.InstanceStop.as_view()),
    path("instances/<id:instance_id>/terminate", instances.InstanceTerminate.as_view()),
    path("instances/<id:instance_id>/events", instances.InstanceEvents.as_view()),
    path("instances/<id:instance_id>/logs", instances.InstanceLogs.as_view()),
    path("instances/<id:instance_id>/logs/stream", instances.InstanceLogStream.as_view()),
    path("instances/<id:instance_id>/placements", placements.InstancePlacements.as_view()),
    path("placements/<id:placement_id>", placements.PlacementDetail.as_view()),
    path("organizations/<id:organization_id>/policy", placements.OrganizationPolicy.as_view()),
    path("projects/<id:project_id>/policy", placements.ProjectPolicy.as_view()),
    path("instances/<id:instance_id>/interruptions", spot.InstanceInterruptions.as_view()),
    path("instances/<id:instance_id>/simulate-interruption", spot.InstanceSimulateInterruption.as_view()),
    path("artifacts/missing", artifacts.ArtifactsMissing.as_view()),
    path("artifacts/<sha256:artifact_id>", artifacts.ArtifactDetail.as_view()),
    path("volumes", volumes.VolumeList.as_view()),
    path("volumes/<id:volume_id>", volumes.VolumeDetail.as_view()),
    path("volumes/<id:volume_id>/restore", volumes.VolumeRestore.as_view()),
    path("volumes/<id:volume_id>/snapshot", volumes.VolumeSnapshot.as_view()),
    path("volumes/<id:volume_id>/attach", volumes.VolumeAttach.as_view()),
    path("volumes/<id:volume_id>/detach", volumes.VolumeDetach.as_view()),
    path("instances/<id:instance_id>/telemetry", telemetry.InstanceTelemetry.as_view()),
    path("windows", reservations.WindowList.as_view()),
    path("offers/<slug:offer_id>/calendar", reservations.OfferCalendar.as_view()),
    path("offers/<slug:offer_id>/asks", resale.OfferAsks.as_view()),
    path("quotes", reservations.QuoteList.as_view()),
    path("quotes/<id:quote_id>", reservations.QuoteDetail.as_view()),
    path("reservations", reservations.ReservationList.as_view()),
    path("reservations/<id:reservation_id>", reservations.ReservationDetail.as_view()),
    path("reservations/<id:reservation_id>/extend", reservations.ReservationExtend.as_view()),
    path("reservations/<id:reservation_id>/cancel", reservations.ReservationCancel.as_view()),
    path("reservations/<id:reservation_id>/events", reservations.ReservationEvents.as_view()),
    path("listings", resale.ListingList.as_view()),
    path("listings/<id:listing_id>", resale.ListingDetail.as_view()),
    path("trades", resale.TradeList.as_view()),
    path("trades/<id:trade_id>", resale.TradeDetail.as_view()),
    path("contracts", contracts.ContractList.as_view()),
    path("contracts/<id:contract_id>", contracts.ContractDetail.as_view()),
    path("contracts/<id:contract_id>/versions", contracts.ContractVersions.as_view()),
    path("contracts/<id:contract_id>/offer", contracts.ContractOffer.as_view()),
    path("contracts/<id:contract_id>/withdraw", contracts.ContractWithdraw.as_view()),
    path("contracts/<id:contract_id>/accept", contracts.ContractAccept.as_view()),
    path("claims", claims.ClaimList.as_view()),
    path("claims/<id:claim_id>", claims.ClaimDetail.as_view()),
    path("claims/<id:claim_id>/events", claims.ClaimEvents.as_view()),
    path("claims/<id:claim_id>/accept", claims.ClaimAccept.as_view()),
    path("claims/<id:claim_id>/reject", claims.ClaimReject.as_view()),
    path("claims/<id:claim_id>/disputes", claims.ClaimDisputes.as_view()),
    path("claims/<id:claim_id>/reverse", claims.ClaimReverse.as_view()),
    path("claims/<id:claim_id>/void", claims.ClaimVoid.as_view()),
    path("claims/<id:claim_id>/verdicts", claims.ClaimVerdicts.as_view()),
    path("claim-disputes", claims.ClaimDisputeList.as_view()),
    path("claim-disputes/<id:dispute_id>", claims.ClaimDisputeDetail.as_view()),
    path("claim-disputes/<id:dispute_id>/answers", claims.ClaimDisputeAnswers.as_view()),
    path("claim-disputes/<id:dispute_id>/withdraw", claims.ClaimDisputeWithdraw.as_view()),
    path("claim-disputes/<id:dispute_id>/decision", claims.ClaimDisputeDecision.as_view()),
    path("usage", till.UsageList.as_view()),
    path("statements", supplier.StatementList.as_view()),
    path("statements/<id:statement_id>", supplier.StatementDetail.as_view()),
    path("statements/<id:statement_id>/lines", supplier.StatementLines.as_view()),
    path("statements/<id:statement_id>/lines.csv", supplier.StatementLinesCsv.as_view()),
    path("statements/<id:statement_id>/pdf", supplier.StatementPdf.as_view()),
    path("payouts", supplier.PayoutList.as_view()),
    path("service-levels", sla.ServiceLevelList.as_view()),
    path("instances/<id:instance_id>/sla", sla.InstanceSla.as_view()),
    path("instances/<id:instance_id>/guarantee", guarantees.InstanceGuarantee.as_view()),
    path("instances/<id:instance_id>/guarantee/hours", guarantees.InstanceGuaranteeHours.as_view()),
    path("revenue/periods", revenue.RevenuePeriodList.as_view()),
    path("revenue/periods/<id:period_id>", revenue.RevenuePeriodDetail.as_view()),
    path("revenue/statements", revenue.RevenueStatementList.as_view()),
    path("costs", costs.CostList.as_view()),
    path("costs.csv", costs.CostsCsv.as_view()),
    path("invoices", invoices.InvoiceList.as_view()),
    path("invoices/<id:invoice_id>", invoices.InvoiceDetail.as_view()),
    path("invoices/<id:invoice_id>/lines", invoices.InvoiceLines.as_view()),
    path("invoices/<id:invoice_id>/lines.csv", invoices.InvoiceLinesCsv.as_view()),
    path("invoices/<id:invoice_id>/pdf", invoices.InvoicePdf.as_view()),
    path("invoices/<id:invoice_id>/proof", invoices.InvoiceProof.as_view()),
    path("commitments", commitments.CommitmentList.as_view()),
    path("cards", payments.CardList.as_view()),
    path("cards/<id:card_id>", payments.CardDetail.as_view()),
    path("payments", payments.PaymentList.as_view()),
    path("payments/<id:payment_id>", payments.PaymentDetail.as_view()),
    path("organizations/<id:organization_id>/automatic-top-up", payments.AutomaticTopUpOf.as_view()),
    path("invoices/<id:invoice_id>/pay", owing.InvoicePay.as_view()),
    path("invoices/<id:invoice_id>/disputes", owing.InvoiceDisputes.as_view()),
    path("disputes/<id:dispute_id>/withdraw", owing.DisputeWithdraw.as_view()),
    path("balance", till.Balance.as_view()),
    path("organizations", tenants.OrganizationList.as_view()),
    path("organizations/<id:organization_id>", tenants.OrganizationDetail.as_view()),
    path("organizations/<id:organization_id>/billing-details", invoices.BillingDetailsOf.as_view()),
    path("projects", tenants.ProjectList.as_view()),
    path("projects/<id:project_id>", tenants.ProjectDetail.as_view()),
    path("projects/<id:project_id>/idle", idle.ProjectIdle.as_view()),
    path("idle", idle.IdleList.as_view()),
    path("quotas", quotas.QuotaList.as_view()),
    path("quota-requests", quotas.QuotaRequestList.as_view()),
    path("quota-requests/<id:request_id>", quotas.QuotaRequestDetail.as_view()),
    path("quota-requests/<id:request_id>/withdraw", quotas.QuotaRequestWithdraw.as_view()),
    path("budgets", budgets.BudgetList.as_view()),
    path("budgets/<id:owner_id>", budgets.BudgetDetail.as_view()),
    path("jobs", jobs.JobList.as_view()),
    path("jobs/schema", jobs.JobSchema.as_view()),
    path("jobs/<id:job_id>", jobs.JobDetail.as_view()),
    path("jobs/<id:job_id>/cancel", jobs.JobCancel.as_view()),
    path("jobs/<id:job_id>/outputs", jobs.JobOutputs.as_view()),
    path("jobs/<id:job_id>/tasks", jobs.JobTasks.as_view()),
    path("jobs/<id:job_id>/tasks/<task:index>", jobs.JobTask.as_view()),
    path("jobs/<id:job_id>/tasks/<task:index>/logs", jobs.JobTaskLogs.as_view()),
    path("waits", quotas.WaitList.as_view()),
    path("waits/outlook", quotas.Outlook.as_view()),
    path("waits/<id:entry_id>", quotas.WaitDetail.as_view()),
    path("waits/<id:entry_id>/cancel", quotas.WaitCancel.as_view()),
    path("memberships", tenants.MemberList.as_view()),
    path("memberships/<id:membership_id>", tenants.MemberDetail.as_view()),
    path("invitations", tenants.InvitationList.as_view()),
    path("invitations/<id:invitation_id>", tenants.InvitationDetail.as_view()),
    path("tokens", tenants.TokenList.as_view()),
    path("tokens/<id:token_id>", tenants.TokenDetail.as_view()),
    path("ssh-keys", tenants.SshKeyList.as_view()),
    path("ssh-keys/<id:key_id>", tenants.SshKeyDetail.as_view()),
    path("registries", registries.RegistryList.as_view()),
    path("registries/<id:registry_id>", registries.RegistryDetail.as_view()),
    path("audit", tenants.AuditList.as_view()),
]
