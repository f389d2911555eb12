"""Every route of the console. Each view carries its own door, and a test walks them all."""

from django.urls import path

from marketplace.console.views import catalogue, fleet, instances, nodes, organizations

urlpatterns = [
    path("", fleet.overview, name="console"),
    path("map", fleet.fleet_map, name="console-map"),
    path("books", fleet.books_page, name="console-books"),
    path("nodes", nodes.listed, name="console-nodes"),
    path("nodes/new", nodes.announce, name="console-node-new"),
    path("nodes/<slug:node_id>", nodes.shown, name="console-node"),
    path("nodes/<slug:node_id>/join-token", nodes.join_token, name="console-node-join-token"),
    path("nodes/<slug:node_id>/cordon", nodes.cordon, name="console-node-cordon"),
    path("nodes/<slug:node_id>/uncordon", nodes.uncordon, name="console-node-uncordon"),
    path("nodes/<slug:node_id>/charts", nodes.charts, name="console-node-charts"),
    path("nodes/<slug:node_id>/accept-inventory", nodes.accept_inventory, name="console-node-accept-inventory"),
    path("nodes/<slug:node_id>/drain", nodes.drain, name="console-node-drain"),
    path("nodes/<slug:node_id>/confirm-off", nodes.confirm_off, name="console-node-confirm-off"),
    path("instances", instances.listed, name="console-instances"),
    path("instances/<slug:instance_id>", instances.shown, name="console-instance"),
    path("instances/<slug:instance_id>/stop", instances.stop, name="console-instance-stop"),
    path("instances/<slug:instance_id>/terminate", instances.terminate, name="console-instance-terminate"),
    path("offers", catalogue.offers, name="console-offers"),
    path("offers/new", catalogue.new_offer, name="console-offer-new"),
    path("offers/<slug:offer_id>", catalogue.offer, name="console-offer"),
    path("offers/<slug:offer_id>/terms", catalogue.offer_terms, name="console-offer-terms"),
    path("offers/<slug:offer_id>/price", catalogue.offer_price, name="console-offer-price"),
    path("sites", catalogue.sites, name="console-sites"),
    path("sites/new", catalogue.new_site, name="console-site-new"),
    path("sites/<slug:site_id>/storage", catalogue.storage, name="console-site-storage"),
    path("sites/<slug:site_id>/fabrics/new", catalogue.new_fabric, name="console-fabric-new"),
    path("organizations", organizations.listed, name="console-organizations"),
    path("organizations/<slug:organization_id>", organizations.shown, name="console-organization"),
    path("organizations/<slug:organization_id>/credit", organizations.credit, name="console-credit"),
    path("projects/<slug:project_id>/quota", organizations.quota, name="console-quota"),
    path("projects/<slug:project_id>/suspend", organizations.suspend, name="console-project-suspend"),
    path("projects/<slug:project_id>/resume", organizations.resume, name="console-project-resume"),
]
